"""Rows of `simple_uvit`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import only, tokens

UVIT = ("simple_uvit", "simple_uvit:SimpleUViT")
ODD = IMAGE | BLOCKS | dict(depth=3, num_register_tokens=0)
TOKENS = IMAGE | BLOCKS | OBLONG | dict(depth=4, num_register_tokens=2, num_classes=0)
PATCHES = only(slice(0, -2))

CASES = [
    Case(*UVIT, INPUT, 11533, IMAGE | BLOCKS, maps=2),
    Case(*UVIT, INPUT, 15821, ODD, "odd-no-registers", maps=3),
    Case(*UVIT, OBLONG_INPUT, 20264, TOKENS, "oblong-tokens-two-skips", maps=4, repairs=(tokens, PATCHES)),
]

EXEMPT = {"large_images": "computes positions for any image"}

# From the paper, in millions; here with a head for 1000 classes, without time and condition.
PUBLISHED = {
    "simple_uvit/s2": (44e6, 0.02),
    "simple_uvit/s2_deep": (58e6, 0.02),
    "simple_uvit/m4": (131e6, 0.01),
    "simple_uvit/l4": (287e6, 0.01),
    "simple_uvit/h2": (501e6, 0.01),
}


def draw(rng):
    image, shape = draw_image(rng)
    sizes = draw_blocks(rng) | dict(depth=rng.randint(1, 5), num_register_tokens=rng.randint(1, 6))
    yield Case(*UVIT, shape, 0, image | sizes)
