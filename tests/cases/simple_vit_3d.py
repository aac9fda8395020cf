"""Rows of `simple_vit_3d`."""

from tests.cases.case import BLOCKS, Case, draw_blocks
from tests.cases.repairs import tokens
from tests.cases.vit_3d import INPUT, OBLONG, OBLONG_INPUT, VIDEO, draw_video, example

__all__ = ["CASES", "PUBLISHED", "draw", "example"]

SIMPLE = ("simple_vit_3d", "simple_vit_3d:SimpleViT")
PADDED = VIDEO | BLOCKS | dict(dim=27, heads=1, dim_head=27)
TOKENS = VIDEO | BLOCKS | OBLONG | dict(num_classes=0)

CASES = [
    Case(*SIMPLE, INPUT, 11509, VIDEO | BLOCKS, maps=2),
    Case(*SIMPLE, (2, 8, 4, 12, 3), 13561, PADDED, "other-size-one-head-padded", maps=2),
    Case(*SIMPLE, OBLONG_INPUT, 9512, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
]

PUBLISHED = {}  # the paper has no video models


def draw(rng):
    video, shape = draw_video(rng)
    yield Case(*SIMPLE, shape, 0, video | draw_blocks(rng))
