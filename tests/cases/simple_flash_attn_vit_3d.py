"""Rows of `simple_flash_attn_vit_3d`."""

from tests.cases.case import BLOCKS, Case, draw_blocks
from tests.cases.repairs import plain_attention, tokens, without_warnings
from tests.cases.vit_3d import INPUT, OBLONG, OBLONG_INPUT, VIDEO, draw_video, example

__all__ = ["CASES", "PUBLISHED", "draw", "example"]

FLASH = ("simple_flash_attn_vit_3d", "simple_flash_attn_vit_3d:SimpleViT")
PLAIN = VIDEO | BLOCKS | dict(use_flash_attn=False)
TOKENS = VIDEO | BLOCKS | OBLONG | dict(num_classes=0)

CASES = [
    Case(*FLASH, INPUT, 11461, VIDEO | BLOCKS, maps=2, repairs=(without_warnings,)),
    Case(*FLASH, INPUT, 11461, PLAIN, "without", maps=2, repairs=(plain_attention,)),
    Case(*FLASH, OBLONG_INPUT, 9464, TOKENS, "oblong-tokens", maps=2, repairs=(tokens, without_warnings)),
]

PUBLISHED = {}  # the paper has no video models


def draw(rng):
    video, shape = draw_video(rng)
    yield Case(*FLASH, shape, 0, video | draw_blocks(rng), repairs=(without_warnings,))
