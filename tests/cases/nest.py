"""Rows of `nest`."""

from tests.cases.case import INPUT, Case
from tests.cases.repairs import feature_map


def oblong_nest(make):
    """Non-square images and patches: another patch projection, with matching positions."""
    from einops.layers.torch import Rearrange
    from torch import nn, randn
    from vit_pytorch import nest

    def repaired(*, image_size, patch_size, channels, dim, num_hierarchies, **kwargs):
        module = make(image_size=8, patch_size=4, dim=dim, num_hierarchies=num_hierarchies, **kwargs)
        (height, width), (ph, pw) = image_size, patch_size
        module.to_patch_embedding[0] = Rearrange("b c (h p1) (w p2) -> b (p1 p2 c) h w", p1=ph, p2=pw)
        module.to_patch_embedding[1] = nest.LayerNorm(ph * pw * channels)
        module.to_patch_embedding[2] = nn.Conv2d(ph * pw * channels, dim, 1)
        for transformer, _ in module.layers:
            transformer.pos_emb = nn.Parameter(randn((height // ph) * (width // pw) // 4 ** (num_hierarchies - 1)))
        return module

    return repaired


NEST = ("nest", "nest:NesT")
PLAIN = dict(image_size=16, patch_size=4, num_classes=5, dim=24, heads=3, num_hierarchies=2, block_repeats=1)
UNEVEN = PLAIN | dict(patch_size=2, dim=8, heads=3, num_hierarchies=3, block_repeats=(1, 1, 2), mlp_mult=2, channels=1)
OBLONG = dict(image_size=(16, 24), patch_size=(4, 3), channels=1, num_classes=0)

# A position shifts all features equally, which norms undo: its gradient is zero at the last level, and a sum that
# cancels at the others, where upstream's own float32 gradient differs by 2e-5 from float64.
FAINT = ("pos_emb",)

CASES = [
    Case(*NEST, INPUT, 47461, PLAIN, maps=2, faint=FAINT),
    Case(*NEST, (2, 16, 16, 1), 23489, UNEVEN, "three-levels", maps=4, faint=FAINT),
    Case(*NEST, (2, 8, 8, 3), 47461, PLAIN, "smaller", maps=2, faint=FAINT),
    Case(
        *NEST,
        (2, 16, 24, 1),
        46192,
        PLAIN | OBLONG,
        "oblong-map",
        maps=2,
        repairs=(oblong_nest, feature_map),
        faint=FAINT,
    ),
]

# Table 3 of the paper, in millions, of which 0.5 are positions, which are shared here.
PUBLISHED = {"nest/t": (17e6, 0.04), "nest/s": (38e6, 0.04), "nest/b": (68e6, 0.02)}


def draw(rng):
    levels, patch, channels = rng.randint(1, 3), rng.choice((2, 3, 4)), rng.randint(1, 3)
    side = patch * 2 ** (levels - 1) * rng.randint(1, 2)
    image = dict(image_size=side, patch_size=patch, channels=channels, num_classes=rng.randint(2, 12))
    repeats = rng.choice((1, tuple(rng.randint(1, 2) for _ in range(levels))))
    sizes = dict(dim=rng.choice((16, 20, 32)), heads=rng.randint(1, 4), mlp_mult=rng.choice((2, 4)))
    layers = dict(num_hierarchies=levels, block_repeats=repeats)
    yield Case(*NEST, (2, side, side, channels), 0, image | sizes | layers, faint=FAINT)
