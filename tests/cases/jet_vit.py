"""Rows of `jet_vit`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image

JET = ("jet_vit", "jet_vit:JetViT")
PLAIN = IMAGE | BLOCKS | dict(window_size=2)
MIXED = PLAIN | dict(attn_layers=["LA", "WA"])
TOKENS = MIXED | OBLONG | dict(num_classes=0)
WIDE = PLAIN | dict(attn_layers=("WA", "LA"), window_size=4, heads=1, dim_head=24)

LEAVES = {
    "window": ("norm/scale", "norm/bias", "to_qkv/kernel", "to_out/kernel", "rel_pos_bias/embedding"),
    "linear": (
        *("norm/scale", "norm/bias", "to_qkv/kernel", "to_out/kernel", "to_out/bias"),
        *("squeeze/kernel", "squeeze/bias", "expand/kernel", "expand/bias"),
    ),
    "full": ("norm/scale", "norm/bias", "to_qkv/kernel", "to_out/kernel", "to_out/bias"),
}


def unused(*layers: str, projected: bool = True) -> tuple[str, ...]:
    """Paths of the attentions that are not in `layers`; `projected`: whether all have an output projection."""
    others = [(kind, i) for i, used in enumerate(layers) for kind in LEAVES if kind != used]
    paths = [f"transformer/{kind}_attn_{i}/{leaf}" for kind, i in others for leaf in LEAVES[kind]]
    return tuple(path for path in paths if projected or "to_out" not in path or "window" in path)


CASES = [
    Case(*JET, INPUT, 23527, PLAIN, maps=2, unused=unused("full", "full")),
    Case(*JET, INPUT, 23527, MIXED, "mixed", maps=1, unused=unused("linear", "window")),
    Case(*JET, INPUT, 21171, WIDE, "wide-head", maps=1, unused=unused("window", "linear", projected=False)),
    Case(*JET, OBLONG_INPUT, 22266, TOKENS, "oblong-tokens", maps=1, unused=unused("linear", "window")),
]

EXEMPT = {"dropout_count": "upstream also has the dropouts of attentions that are not used"}
PUBLISHED = {}  # the paper modifies other models


def draw(rng):
    image, shape = draw_image(rng)
    dim_head, side = rng.choice((4, 8, 16)), image["image_size"] // image["patch_size"]
    window = rng.choice([size for size in (1, 2, 3, 4) if side % size == 0])
    blocks = draw_blocks(rng) | dict(dim_head=dim_head, dim=dim_head * rng.randint(2, 4), window_size=window)
    layers = tuple(rng.choice(("FA", "WA", "LA")) for _ in range(blocks["depth"]))
    yield Case(*JET, shape, 0, image | blocks | dict(attn_layers=layers))
