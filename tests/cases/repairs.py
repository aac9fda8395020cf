"""Repairs of upstream: each function takes an upstream class and returns one that supports what upstream does not.

Only the part that fails is replaced, by torch's own modules; the compared arithmetic remains upstream's.
Repairs of a single model are in its file. Functions import torch themselves, as rows are also read without it.
"""


def tokens(make):
    """`num_classes=0`: without the head, the model returns the output of the last block."""
    from torch import nn

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


def without_warnings(make):
    """Flash attention without a warning: upstream chooses the kernel by a function that torch will remove."""
    import warnings

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward

        def quiet(images):
            with warnings.catch_warnings(action="ignore"):
                return forward(images)

        module.forward = quiet
        return module

    return repaired


def plain_attention(make):
    """Attention without flash: upstream's uses an einsum that it does not import, for keys without heads."""

    def attend(q, k, v):
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return scores.softmax(dim=-1) @ v

    def repaired(**kwargs):
        module = make(**kwargs)
        for part in module.modules():
            if type(part).__name__ == "Attend":
                part.forward = attend
        return module

    return repaired


def feature_map(make):
    """`num_classes=0`: without the head, the model returns the last feature map, channels-last."""
    from einops.layers.torch import Rearrange

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        head = "to_logits" if hasattr(module, "to_logits") else "mlp_head"
        setattr(module, head, Rearrange("b d h w -> b h w d"))
        return module

    return repaired


def no_gradient_of(ending: str):
    """Parameters that shift all scores of a softmax equally: upstream's gradient, rounding error, is dropped."""

    def repair(make):
        def repaired(**kwargs):
            module = make(**kwargs)
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and not name.endswith(ending))
            return module

        return repaired

    return repair


def channels_last(make):
    """Sequences (b, n, c), as the tests pass them."""

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward
        module.forward = lambda x, **kwargs: forward(x.mT, **kwargs)
        return module

    return repaired


def sized(make):
    """`image_size`, which has no effect."""
    return lambda *, image_size, **kwargs: make(**kwargs)


def only(part: slice):
    """A repair: the model returns only the tokens of `part`."""

    def repair(make):
        def repaired(**kwargs):
            module = make(**kwargs)
            forward = module.forward
            module.forward = lambda *args: forward(*args)[:, part]
            return module

        return repaired

    return repair


def oblong_patches(make):
    """Non-square patches and images, any number of channels: another patch projection, with matching positions."""
    from einops.layers.torch import Rearrange
    from torch import nn

    def repaired(*, image_size, patch_size, channels, dim, **kwargs):
        module = make(image_size=8, patch_size=4, dim=dim, **kwargs)
        (height, width), (ph, pw) = image_size, patch_size
        module.to_patch_embedding[0] = Rearrange("b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=ph, pw=pw)
        module.to_patch_embedding[1] = nn.LayerNorm(ph * pw * channels)
        module.to_patch_embedding[2] = nn.Linear(ph * pw * channels, dim)
        set_positions(module, (height // ph) * (width // pw), before=4)
        return module

    return repaired


def set_positions(module, patches: int, before: int):
    """Replace positions for `before` patches by positions for the right number."""
    import torch

    _, count, dim = module.pos_embedding.shape
    module.pos_embedding = torch.nn.Parameter(torch.randn(1, count - before + patches, dim))
