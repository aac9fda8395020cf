"""Rows of `simple_vit_1d`."""

from tests.cases.case import BLOCKS, Case, draw_blocks
from tests.cases.repairs import channels_last, tokens
from tests.cases.vit_1d import SERIES, draw_series, example

__all__ = ["CASES", "PUBLISHED", "draw", "example"]

SIMPLE = ("simple_vit_1d", "simple_vit_1d:SimpleViT")
LONGER = SERIES | BLOCKS | dict(patch_size=5, channels=2, heads=1, dim_head=24)
TOKENS = SERIES | BLOCKS | dict(channels=1, num_classes=0)

CASES = [
    Case(*SIMPLE, (2, 20, 3), 9325, SERIES | BLOCKS, maps=2, repairs=(channels_last,)),
    Case(*SIMPLE, (2, 35, 2), 9273, LONGER, "longer-one-head", maps=2, repairs=(channels_last,)),
    Case(*SIMPLE, (2, 20, 1), 8992, TOKENS, "tokens", maps=2, repairs=(tokens, channels_last)),
]

PUBLISHED = {}  # the paper has no models of series


def draw(rng):
    series, shape = draw_series(rng)
    yield Case(*SIMPLE, shape, 0, series | draw_blocks(rng), repairs=(channels_last,))
