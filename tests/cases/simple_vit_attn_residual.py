"""Rows of `simple_vit_attn_residual`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

RESIDUAL = ("simple_vit_attn_residual", "simple_vit_attn_residual:SimpleViTAttnResidual")
LAST = IMAGE | BLOCKS | dict(learned_query=False)
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0)

CASES = [
    Case(*RESIDUAL, INPUT, 19957, IMAGE | BLOCKS, maps=6),
    Case(*RESIDUAL, INPUT, 19861, LAST, "last-asks", maps=6),
    Case(*RESIDUAL, OBLONG_INPUT, 18792, TOKENS, "oblong-tokens", maps=6, repairs=(tokens,)),
]

EXEMPT = {"large_images": "computes positions for any image"}
# Our own counts, as the paper is about text.
PUBLISHED = {
    "simple_vit_attn_residual/ti16": (9_234_088, 0),
    "simple_vit_attn_residual/s16": (36_160_360, 0),
    "simple_vit_attn_residual/b16": (143_097_064, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    yield Case(*RESIDUAL, shape, 0, image | draw_blocks(rng) | dict(learned_query=rng.random() < 0.5))
