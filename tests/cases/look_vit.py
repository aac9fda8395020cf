"""Rows of `look_vit`."""

from tests.cases.case import Case


def oblong_look(make):
    """Non-square images and patches, and both sets of tokens: upstream's layers in a forward with the right grids."""
    import torch
    from einops.layers.torch import Rearrange
    from torch import nn
    from torch.nn import functional
    from vit_pytorch.look_vit import posemb_sincos_2d

    def repaired(*, image_size, patch_size, highres_patch_size, channels, num_classes, **kwargs):
        module = make(image_size=8, patch_size=4, highres_patch_size=2, num_classes=1, **kwargs)
        (ph, pw), kernel, dim = highres_patch_size, kwargs["patch_conv_kernel_size"], kwargs["dim"]
        few = [side // patch for side, patch in zip(image_size, patch_size, strict=True)]
        module.to_patches[0] = Rearrange("b c (h ph) (w pw) -> b (ph pw c) h w", ph=ph, pw=pw)
        module.to_patches[1] = nn.Conv2d(ph * pw * channels, dim, kernel, padding=kernel // 2)
        module.pos_embedding = nn.Parameter(torch.randn(image_size[0] // ph * image_size[1] // pw, dim))
        module.to_logits = nn.Identity()

        def forward(images):
            grid = module.to_patches(images)
            grid = grid + posemb_sincos_2d(grid).unflatten(0, grid.shape[1:3])
            x = functional.interpolate(grid.movedim(3, 1), few, mode="bilinear").flatten(2).mT
            highres = grid.flatten(1, 2)
            for attn, mlp, lookup, highres_attn, highres_norm, highres_mlp in module.layers:
                out, scores = lookup(x, highres, return_qk_sim=True)
                x = x + out
                x = attn(x) + x
                x = mlp(x) + x
                highres = highres_norm(highres_attn(highres, x, qk_sim=scores.mT) + highres)
                highres = highres_mlp(highres) + highres
            return module.norm(x), module.highres_norm(highres)

        module.forward = forward
        return module

    return repaired


LOOK = ("look_vit", "look_vit:LookViT")
SIZES = dict(dim=24, depth=2, heads=3, dim_head=8, mlp_factor=2, dropout=0.0)
CROSS = dict(cross_attn_heads=2, cross_attn_dim_head=10, highres_mlp_factor=1.5, patch_conv_kernel_size=3)
PLAIN = SIZES | CROSS | dict(image_size=16, patch_size=4, highres_patch_size=2, num_classes=5)
THIRDS = PLAIN | dict(image_size=24, patch_size=8, highres_patch_size=3, depth=1, patch_conv_kernel_size=5)
OBLONG = PLAIN | dict(image_size=(8, 12), patch_size=(4, 6), highres_patch_size=(1, 4), channels=1, num_classes=0)
UNUSED = ("pos_embedding",)

CASES = [
    Case(*LOOK, (2, 16, 16, 3), 23376, PLAIN, maps=6, unused=UNUSED),
    Case(*LOOK, (2, 24, 24, 3), 27468, THIRDS, "thirds", maps=3, unused=UNUSED),
    Case(*LOOK, (2, 8, 12, 1), 20568, OBLONG, "oblong-tokens", maps=6, unused=UNUSED, repairs=(oblong_look,)),
]

EXEMPT = {"large_images": "computes positions for any image"}
PUBLISHED = {}  # the paper's sizes are unknown


def draw(rng):
    highres, channels = rng.choice((1, 2, 3)), rng.randint(1, 3)
    patch = highres * rng.randint(2, 3)
    side = patch * rng.randint(2, 3)
    sizes = dict(image_size=side, patch_size=patch, highres_patch_size=highres, channels=channels)
    blocks = dict(dim=4 * rng.randint(2, 8), depth=rng.randint(1, 3), heads=rng.randint(1, 4), dim_head=7)
    cross = dict(cross_attn_heads=rng.randint(1, 3), cross_attn_dim_head=5, patch_conv_kernel_size=rng.choice((1, 5)))
    factors = dict(mlp_factor=rng.randint(1, 4), highres_mlp_factor=rng.choice((0.5, 2)), num_classes=7)
    yield Case(*LOOK, (2, side, side, channels), 0, sizes | blocks | cross | factors)
