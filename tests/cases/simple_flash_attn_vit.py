"""Rows of `simple_flash_attn_vit`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import plain_attention, tokens, without_warnings

FLASH = ("simple_flash_attn_vit", "simple_flash_attn_vit:SimpleViT")
PLAIN = IMAGE | BLOCKS | dict(use_flash=False)
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0)

CASES = [
    Case(*FLASH, INPUT, 10261, IMAGE | BLOCKS, maps=2, repairs=(without_warnings,)),
    Case(*FLASH, INPUT, 10261, PLAIN, "without", maps=2, repairs=(plain_attention,)),
    Case(*FLASH, OBLONG_INPUT, 9048, TOKENS, "oblong-tokens", maps=2, repairs=(tokens, without_warnings)),
]

EXEMPT = {"large_images": "computes positions for any image"}

# Our own counts at SimpleViT's sizes, as the paper has no image models.
PUBLISHED = {
    "simple_flash_attn_vit/ti16": (5_672_104, 0),
    "simple_flash_attn_vit/s16": (21_958_504, 0),
    "simple_flash_attn_vit/b16": (86_381_800, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    yield Case(*FLASH, shape, 0, image | draw_blocks(rng), repairs=(without_warnings,))
