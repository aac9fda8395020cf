"""Rows of `scalable_vit`."""

from tests.cases.case import Case
from tests.cases.repairs import feature_map

SCALABLE = ("scalable_vit", "scalable_vit:ScalableViT")
KEYS = dict(ssa_dim_key=6, ssa_dim_value=5, iwsa_dim_key=4, iwsa_dim_value=7)
PLAIN = dict(num_classes=5, dim=8, depth=(1, 1), heads=2, reduction_factor=(2, 1), window_size=2, **KEYS)
UNEVEN = PLAIN | dict(depth=(2,), reduction_factor=3, window_size=None, ff_expansion_factor=2, channels=1)
STAGES = PLAIN | dict(num_classes=0, heads=(1, 2), window_size=(4, None), ssa_dim_key=(6, 3), iwsa_dim_value=(5, 2))

# Small activations make attention nearly uniform, with tiny gradients; upstream's float32 is as far from float64.
FAINT = (r"to_[qk]\.weight",)

CASES = [
    Case(*SCALABLE, (2, 16, 16, 3), 14521, PLAIN, maps=4, faint=FAINT),
    Case(*SCALABLE, (2, 17, 25, 1), 9601, UNEVEN, "whole-windows", maps=4, faint=FAINT),
    Case(
        *SCALABLE,
        (2, 16, 32, 3),
        10066,
        STAGES,
        "stages-map",
        maps=4,
        repairs=(feature_map,),
        faint=FAINT,
    ),
]

EXEMPT = dict.fromkeys(("bad_sizes", "large_images", "unfilled_images"), "has no patches")
# Our own counts. The paper's 32, 81 and 104 million are with depthwise reductions and local convolutions.
PUBLISHED = {
    "scalable_vit/s": (39_000_360, 0.0),
    "scalable_vit/b": (108_878_152, 0.0),
    "scalable_vit/l": (150_457_448, 0.0),
}


def draw(rng):
    stages, channels = rng.randint(1, 3), rng.randint(1, 3)
    window = rng.choice((1, 2, None))
    side = 4 * 2 ** (stages - 1) * 2 * rng.randint(1, 2)
    sizes = {name: rng.choice((3, 5, 8)) for name in KEYS}
    reduction = tuple(rng.randint(1, 2) for _ in range(stages))
    depth = tuple(rng.randint(1, 2) for _ in range(stages))
    model = dict(dim=rng.choice((8, 12)), depth=depth, heads=rng.randint(1, 3), reduction_factor=reduction)
    image = dict(num_classes=rng.randint(2, 12), channels=channels, window_size=window)
    yield Case(*SCALABLE, (2, side, side, channels), 0, image | model | sizes, faint=FAINT)
