"""Rows of `max_vit`."""

from tests.cases.case import Case
from tests.cases.repairs import feature_map

MAX = ("max_vit", "max_vit:MaxViT")
PLAIN = dict(num_classes=5, dim=8, depth=(1,), dim_head=4, window_size=2, dropout=0.0)
RATES = dict(mbconv_expansion_rate=2, mbconv_shrinkage_rate=0.5, dim_conv_stem=6, channels=1)
STAGES = PLAIN | dict(depth=(2, 1), window_size=3, **RATES)

# Small activations make attention nearly uniform, with tiny gradients; upstream's float32 is as far from float64.
FAINT = ("rel_pos_bias", "to_qkv")

CASES = [
    Case(*MAX, (2, 16, 16, 3), 4113, PLAIN, maps=2, faint=FAINT),
    Case(*MAX, (1, 24, 45, 1), 14539, STAGES, "stages", maps=6, faint=FAINT),
    Case(*MAX, (2, 8, 16, 3), 4052, PLAIN | dict(num_classes=0), "map", maps=2, repairs=(feature_map,), faint=FAINT),
]

EXEMPT = dict.fromkeys(("bad_sizes", "large_images", "unfilled_images"), "has no patches")
# Table 2 of the paper, in millions; here without shortcuts between stages, biases and a second layer in the head.
PUBLISHED = {
    "max_vit/t": (31e6, 0.02),
    "max_vit/s": (69e6, 0.02),
    "max_vit/b": (120e6, 0.02),
    "max_vit/l": (212e6, 0.02),
}


def draw_max_vit(rng) -> tuple[dict, tuple[int, ...]]:
    """Randomly drawn arguments, and the shape of the input."""
    depth = tuple(rng.randint(1, 2) for _ in range(rng.randint(1, 2)))
    window, dim_head, channels = rng.randint(1, 3), rng.choice((2, 4, 5)), rng.randint(1, 3)
    height, width = (2 ** (1 + len(depth)) * window * rng.randint(1, 2) for _ in range(2))
    conv = dict(mbconv_expansion_rate=rng.choice((1, 2, 3)), mbconv_shrinkage_rate=rng.choice((0.25, 0.5)))
    sizes = dict(dim=dim_head * rng.randint(1, 3), dim_head=dim_head, depth=depth, window_size=window)
    image = dict(num_classes=rng.randint(2, 12), channels=channels, dim_conv_stem=rng.choice((None, 7)))
    return image | sizes | conv, (2, height, width, channels)


def draw(rng):
    kwargs, shape = draw_max_vit(rng)
    yield Case(*MAX, shape, 0, kwargs, faint=FAINT)
