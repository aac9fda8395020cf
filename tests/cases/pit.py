"""Rows of `pit`."""

import types

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import set_positions, tokens


def oblong_pit(make):
    """Non-square images and patches: oblong windows, matching positions, and pooling with the right grid."""
    from torch import nn
    from vit_pytorch import pit

    def repaired(*, image_size, patch_size, channels, dim, **kwargs):
        module = make(image_size=8, patch_size=4, channels=channels, dim=dim, **kwargs)
        before = module.pos_embedding.shape[1] - 1
        strides = [side // 2 for side in patch_size]
        module.to_patch_embedding[0] = nn.Unfold(patch_size, stride=strides)
        module.to_patch_embedding[2] = nn.Linear(patch_size[0] * patch_size[1] * channels, dim)
        rows, columns = ((i - p) // s + 1 for i, p, s in zip(image_size, patch_size, strides, strict=True))
        set_positions(module, rows * columns, before)
        for pool in module.layers:
            if isinstance(pool, pit.Pool):
                pool.forward = types.MethodType(_pool_of(rows), pool)
                rows = (rows - 1) // 2 + 1
        return module

    return repaired


def _pool_of(rows: int):
    import torch

    def forward(self, x):
        grid = x[:, 1:].transpose(1, 2).unflatten(2, (rows, -1))
        return torch.cat((self.cls_ff(x[:, :1]), self.downsample(grid).flatten(2).transpose(1, 2)), dim=1)

    return forward


def mlp_dims(make):
    """`mlp_dim` of each stage: stages are made again, as upstream makes them."""
    from vit_pytorch import pit

    def repaired(*, mlp_dim, dim, depth, heads, dim_head, **kwargs):
        module = make(mlp_dim=mlp_dim[0], dim=dim, depth=depth, heads=heads, dim_head=dim_head, **kwargs)
        for i, stage_dim in enumerate(mlp_dim):
            module.layers[2 * i] = pit.Transformer(dim * 2**i, depth[i], heads, dim_head, stage_dim)
        return module

    return repaired


PIT = ("pit", "pit:PiT")
PLAIN = IMAGE | BLOCKS | dict(depth=(1, 2), heads=(3, 6))
LONG = PLAIN | dict(image_size=24, patch_size=6, depth=(1, 1, 1), heads=2, channels=1)
MLP_DIMS = PLAIN | dict(heads=1, dim_head=24, mlp_dim=(40, 56))
TOKENS = PLAIN | OBLONG | dict(num_classes=0)

CASES = [
    Case(*PIT, INPUT, 37949, PLAIN, maps=3),
    Case(*PIT, (2, 24, 24, 1), 47117, LONG, "three-stages", maps=3),
    Case(*PIT, INPUT, 31237, MLP_DIMS, "mlp-dims", maps=3, repairs=(mlp_dims,)),
    Case(*PIT, OBLONG_INPUT, 36264, TOKENS, "oblong-tokens", maps=3, repairs=(oblong_pit, tokens)),
]

# Table 3 of the paper, in millions; here pooling has another convolution.
PUBLISHED = {"pit/ti": (4.9e6, 0.02), "pit/xs": (10.6e6, 0.02), "pit/s": (23.5e6, 0.02), "pit/b": (73.8e6, 0.02)}


EXEMPT = {"unfilled_images": "patches overlap, and a last part of one is left out"}


def draw(rng):
    image, shape = draw_image(rng)
    depth = tuple(rng.randint(1, 2) for _ in range(rng.randint(1, 3)))
    yield Case(*PIT, shape, 0, image | draw_blocks(rng) | dict(depth=depth))
