"""Rows of `sep_vit`."""

from tests.cases.case import Case
from tests.cases.repairs import feature_map


def sizes(make):
    """`window_size` and `dim_head`: attention is made again, with them."""
    from vit_pytorch import sep_vit

    def repaired(*, upstream_sizes, heads, window_size, dim_head, dropout=0.0, **kwargs):
        module = make(heads=heads, dropout=dropout, **kwargs)
        for i, (_, peg, transformer) in enumerate(module.layers):
            per_stage = lambda value: value[i] if isinstance(value, tuple) else value  # noqa: B023
            for block in transformer.layers:
                dim = peg.proj.in_channels
                block[0] = sep_vit.DSSA(dim, per_stage(heads), dim_head, dropout, per_stage(window_size))
        return module

    return repaired


SEP = ("sep_vit", "sep_vit:SepViT")
PLAIN = dict(num_classes=5, dim=8, depth=(1,), heads=2)
STAGES = PLAIN | dict(depth=(1, 2), heads=(1, 2), ff_mult=2, channels=1, window_size=3, dim_head=5)
SMALL = dict(depth=(1, 1), upstream_sizes=False, window_size=(4, 2), dim_head=6)
# Small activations make attention nearly uniform, with tiny gradients; upstream's float32 is as far from float64.
FAINT = ("window_tokens_to_qk", "to_qkv", "window_tokens")
LEAVES = ("norm/bias", "norm/scale", "to_qk/bias", "to_qk/kernel")
ALONE, LAST = (  # attention among windows has no effect if there is a single window
    tuple(f"{block}/token_{leaf}" for block in blocks for leaf in LEAVES)
    for blocks in (("stage_0_attn_0",), ("stage_1_attn_0", "stage_1_attn_1"))
)

CASES = [
    Case(*SEP, (1, 28, 56, 3), 12357, PLAIN, maps=2, faint=FAINT),
    Case(*SEP, (1, 25, 28, 3), 12357, PLAIN, "one-window", maps=2, unused=ALONE, faint=FAINT),
    Case(*SEP, (1, 56, 56, 1), 32765, STAGES, "stages", maps=6, unused=LAST, faint=FAINT),
    Case(*SEP, (2, 32, 32, 3), 7349, PLAIN | SMALL, "sizes", maps=4, repairs=(sizes,), faint=FAINT),
    Case(*SEP, (1, 28, 56, 3), 12296, PLAIN | dict(num_classes=0), "map", maps=2, repairs=(feature_map,), faint=FAINT),
]

EXEMPT = dict.fromkeys(("bad_sizes", "large_images", "unfilled_images"), "has no patches")
# Our own counts. The paper's, in millions, are 31.2, 46.6 and 82.3 for t, s and b: there layers whose window is the
# whole map, every second one in stage 2 and all in stage 3, have no queries and keys of window tokens (3.2, 4.4, 7.9).
PUBLISHED = {
    "sep_vit/lite": (4_014_728, 0.0),
    "sep_vit/t": (34_404_936, 0.0),
    "sep_vit/s": (50_960_456, 0.0),
    "sep_vit/b": (90_196_008, 0.0),
}


def draw(rng):
    stages, channels = rng.randint(1, 2), rng.randint(1, 3)
    height, width = (28 * 2 ** (stages - 1) * rng.randint(1, 2 if stages == 1 else 1) for _ in range(2))
    depth, heads = (tuple(rng.randint(1, 2) for _ in range(stages)) for _ in range(2))
    ignored = dict(window_size=rng.randint(1, 9), dim_head=rng.randint(1, 64))
    model = dict(dim=rng.choice((8, 12)), depth=depth, heads=heads, ff_mult=rng.choice((1, 2, 4)))
    image = dict(num_classes=rng.randint(2, 12), channels=channels)
    yield Case(*SEP, (1, height, width, channels), 0, image | model | ignored, faint=FAINT)
