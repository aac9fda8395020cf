"""What upstream cannot do, done to its classes from outside: each function takes a class and gives one that can.

Only what stops upstream is replaced, by torch's own modules; the arithmetic that we compare with stays upstream's.
Repairs of one model stand in its own file. Torch is imported where it is used, as rows are read without it too.
"""


def tokens(make):
    """`num_classes=0`: the head goes, and what the last block returns comes out."""
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
    """Attention without flash: upstream's uses an einsum that it does not import, and of keys without heads."""

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
    """`num_classes=0`: the head goes, and the last feature map comes out, channels last."""
    from einops.layers.torch import Rearrange

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        head = "to_logits" if hasattr(module, "to_logits") else "mlp_head"
        setattr(module, head, Rearrange("b d h w -> b h w d"))
        return module

    return repaired


def no_gradient_of(ending: str):
    """Parameters that shift all scores of a softmax alike: their gradient is rounding, and upstream's is left out."""

    def repair(make):
        def repaired(**kwargs):
            module = make(**kwargs)
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and not name.endswith(ending))
            return module

        return repaired

    return repair


def channels_last(make):
    """Sequences as tests give them, (b, n, c)."""

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward
        module.forward = lambda x, **kwargs: forward(x.mT, **kwargs)
        return module

    return repaired


def sized(make):
    """`image_size`, which says nothing of what is computed."""
    return lambda *, image_size, **kwargs: make(**kwargs)


def only(part: slice):
    """A repair: of the tokens that come out, those of `part` alone."""

    def repair(make):
        def repaired(**kwargs):
            module = make(**kwargs)
            forward = module.forward
            module.forward = lambda *args: forward(*args)[:, part]
            return module

        return repaired

    return repair


def oblong_patches(make):
    """Non-square patches and images, and any number of channels: another patch projection, and as many positions."""
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
    """Positions for as many patches, where there were some for `before`."""
    import torch

    _, count, dim = module.pos_embedding.shape
    module.pos_embedding = torch.nn.Parameter(torch.randn(1, count - before + patches, dim))
