"""Rows of `simple_vit_with_value_residual`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

VALUE_RESIDUAL = ("simple_vit_with_value_residual", "simple_vit_with_value_residual:SimpleViT")
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0, depth=3)

CASES = [
    Case(*VALUE_RESIDUAL, INPUT, 10336, IMAGE | BLOCKS, maps=2),
    Case(*VALUE_RESIDUAL, OBLONG_INPUT, 13630, TOKENS, "oblong-tokens-three-layers", maps=3, repairs=(tokens,)),
]

EXEMPT = {"large_images": "computes positions for any image"}

# Our own counts at SimpleViT's sizes, as the paper has language models.
PUBLISHED = {
    "simple_vit_with_value_residual/ti16": (5_678_473, 0),
    "simple_vit_with_value_residual/s16": (21_983_914, 0),
    "simple_vit_with_value_residual/b16": (86_483_308, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    yield Case(*VALUE_RESIDUAL, shape, 0, image | draw_blocks(rng))
