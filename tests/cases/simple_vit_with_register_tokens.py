"""Rows of `simple_vit_with_register_tokens`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import only, tokens

REGISTERS = ("simple_vit_with_register_tokens", "simple_vit_with_register_tokens:SimpleViT")
TWO = dict(num_register_tokens=2)
NONE = IMAGE | BLOCKS | dict(num_register_tokens=0)
TOKENS = IMAGE | BLOCKS | OBLONG | TWO | dict(num_classes=0)
PATCHES = only(slice(0, -2))

CASES = [
    Case(*REGISTERS, INPUT, 10357, IMAGE | BLOCKS, maps=2),
    Case(*REGISTERS, INPUT, 10261, NONE, "none", maps=2),
    Case(*REGISTERS, OBLONG_INPUT, 9144, TOKENS, "oblong-tokens", maps=2, repairs=(tokens, PATCHES)),
]

EXEMPT = {"large_images": "computes positions for any image"}

# Our own counts: the paper names its models (DeiT III-B/16, DINOv2-L/14), not their counts.
PUBLISHED = {
    "simple_vit_with_register_tokens/b16": (86_384_872, 0),
    "simple_vit_with_register_tokens/l14": (303_848_576, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    yield Case(*REGISTERS, shape, 0, image | draw_blocks(rng) | dict(num_register_tokens=rng.randint(1, 6)))
