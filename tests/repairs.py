"""What upstream cannot do, done to its classes from outside: each function takes a class and gives one that can.

Only what stops upstream is replaced, by torch's own modules; the arithmetic that we compare with stays upstream's.
"""

import types

import torch
from einops.layers.torch import Rearrange
from torch import nn

import tests.upstream  # noqa: F401 (first, as it lets vit_pytorch be imported)

# isort: split
from vit_pytorch import pit


def tokens(make):
    """`num_classes=0`: the head goes, and what the last block returns comes out."""

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        head = "linear_head" if hasattr(module, "linear_head") else "mlp_head"
        setattr(module, head, nn.Identity())
        encoder = next(name for name in ("cls_transformer", "transformer", "layers") if hasattr(module, name))
        encoded, forward = [], module.forward
        getattr(module, encoder).register_forward_hook(lambda module, args, output: encoded.append(output))
        module.forward = lambda *args: (forward(*args), encoded.pop())[1]
        return module

    return repaired


def oblong_patches(make):
    """Non-square patches and images, and any number of channels: another patch projection, and as many positions."""

    def repaired(*, image_size, patch_size, channels, dim, **kwargs):
        module = make(image_size=8, patch_size=4, dim=dim, **kwargs)
        (height, width), (ph, pw) = image_size, patch_size
        module.to_patch_embedding[0] = Rearrange("b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=ph, pw=pw)
        module.to_patch_embedding[1] = nn.LayerNorm(ph * pw * channels)
        module.to_patch_embedding[2] = nn.Linear(ph * pw * channels, dim)
        _set_positions(module, (height // ph) * (width // pw), before=4)
        return module

    return repaired


def oblong_t2t(make):
    """Non-square images: the merging stages know the grid of tokens instead of taking a root, and as many positions."""

    def repaired(*, image_size, t2t_layers, **kwargs):
        module = make(image_size=16, t2t_layers=t2t_layers, **kwargs)
        before = module.pos_embedding.shape[1] - 1
        rows, columns = image_size
        for i, (kernel, stride) in enumerate(t2t_layers):
            if i > 0:
                module.to_patch_embedding[4 * i] = Rearrange("b (h w) c -> b c h w", h=rows)
            rows, columns = ((side - kernel + 2 * (stride // 2)) // stride + 1 for side in (rows, columns))
        _set_positions(module, rows * columns, before)
        return module

    return repaired


def oblong_pit(make):
    """Non-square images and patches: windows of two sides, as many positions, and pools that know the grid."""

    def repaired(*, image_size, patch_size, channels, dim, **kwargs):
        module = make(image_size=8, patch_size=4, channels=channels, dim=dim, **kwargs)
        before = module.pos_embedding.shape[1] - 1
        strides = [side // 2 for side in patch_size]
        module.to_patch_embedding[0] = nn.Unfold(patch_size, stride=strides)
        module.to_patch_embedding[2] = nn.Linear(patch_size[0] * patch_size[1] * channels, dim)
        rows, columns = ((i - p) // s + 1 for i, p, s in zip(image_size, patch_size, strides, strict=True))
        _set_positions(module, rows * columns, before)
        for pool in module.layers:
            if isinstance(pool, pit.Pool):
                pool.forward = types.MethodType(_pool_of(rows), pool)
                rows = (rows - 1) // 2 + 1
        return module

    return repaired


def mlp_dims(make):
    """`mlp_dim` of each stage: stages made anew, as upstream makes them."""

    def repaired(*, mlp_dim, dim, depth, heads, dim_head, **kwargs):
        module = make(mlp_dim=mlp_dim[0], dim=dim, depth=depth, heads=heads, dim_head=dim_head, **kwargs)
        for i, stage_dim in enumerate(mlp_dim):
            module.layers[2 * i] = pit.Transformer(dim * 2**i, depth[i], heads, dim_head, stage_dim)
        return module

    return repaired


def token_parameters(make):
    """The distillable T2TViT and EfficientViT read their class token and positions as (n, d), but store (1, n, d)."""

    def repaired(**kwargs):
        module = make(**kwargs)
        module.cls_token = nn.Parameter(module.cls_token.detach()[0])
        module.pos_embedding = nn.Parameter(module.pos_embedding.detach()[0])
        return module

    return repaired


def _set_positions(module, patches: int, before: int):
    _, count, dim = module.pos_embedding.shape
    module.pos_embedding = nn.Parameter(torch.randn(1, count - before + patches, dim))


def _pool_of(rows: int):
    def forward(self, x):
        grid = x[:, 1:].transpose(1, 2).unflatten(2, (rows, -1))
        return torch.cat((self.cls_ff(x[:, :1]), self.downsample(grid).flatten(2).transpose(1, 2)), dim=1)

    return forward
