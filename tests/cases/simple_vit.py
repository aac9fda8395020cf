"""Rows of `simple_vit`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

SIMPLE = ("simple_vit", "simple_vit:SimpleViT")
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0)

CASES = [
    Case(*SIMPLE, INPUT, 10261, IMAGE | BLOCKS, maps=2),
    Case(*SIMPLE, OBLONG_INPUT, 9096, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
]

EXEMPT = {"large_images": "computes positions for any image"}
PUBLISHED = {}  # the paper gives none


def draw(rng):
    image, shape = draw_image(rng)
    yield Case(*SIMPLE, shape, 0, image | draw_blocks(rng))
