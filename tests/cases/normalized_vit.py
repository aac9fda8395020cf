"""Rows of `normalized_vit`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image


def tokens(make):
    """`num_classes=0`: the model returns the tokens before pooling."""
    from torch import nn

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        del module.logit_scale
        module.to_pred, module.logit_scale, pooled = nn.Identity(), 1.0, []
        last = module.layers[-1][1]
        last.register_forward_hook(lambda _, args, out: pooled.append((args[0], out)))

        def forward(images):
            from vit_pytorch.normalized_vit import l2norm

            type(module).forward(module, images)
            x, out = pooled.pop()
            return l2norm(x.lerp(l2norm(out), module.residual_lerp_scales[-1][1] * module.scale))

        module.forward = forward
        return module

    return repaired


def oblong_patches(make):
    """Non-square patches: another patch projection, with matching positions."""
    from einops.layers.torch import Rearrange

    def repaired(*, image_size, patch_size, channels, dim, **kwargs):
        from vit_pytorch.normalized_vit import NormLinear

        (height, width), (ph, pw) = image_size, patch_size
        module = make(image_size=8, patch_size=4, channels=channels, dim=dim, **kwargs)
        module.to_patch_embedding[0] = Rearrange("b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=ph, pw=pw)
        module.to_patch_embedding[1] = NormLinear(ph * pw * channels, dim, norm_dim_in=False)
        module.abs_pos_emb = NormLinear(dim, (height // ph) * (width // pw))
        return module

    return repaired


NORMALIZED = ("normalized_vit", "normalized_vit:nViT")
SLOW = IMAGE | BLOCKS | dict(image_size=(8, 12), channels=2, residual_lerp_scale_init=0.2)
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0)

CASES = [
    Case(*NORMALIZED, INPUT, 10309, IMAGE | BLOCKS, maps=2),
    Case(*NORMALIZED, (2, 8, 12, 2), 9685, SLOW, "slow", maps=2),
    Case(*NORMALIZED, OBLONG_INPUT, 9128, TOKENS, "oblong-tokens", maps=2, repairs=(oblong_patches, tokens)),
]

EXEMPT = {"dropout_count": "upstream's attention drops inside torch's function, not in a module"}
# Our own counts, as the paper is about text.
PUBLISHED = {
    "normalized_vit/ti16": (5_708_008, 0),
    "normalized_vit/s16": (22_031_848, 0),
    "normalized_vit/b16": (86_530_024, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    init = dict(residual_lerp_scale_init=rng.choice((None, 0.1, 0.7)))
    yield Case(*NORMALIZED, shape, 0, image | draw_blocks(rng) | init)
