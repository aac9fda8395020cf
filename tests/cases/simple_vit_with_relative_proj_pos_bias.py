"""Rows of `simple_vit_with_relative_proj_pos_bias`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens


def sequence(make):
    """Tokens as a sequence: upstream's are a grid."""

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward
        module.forward = lambda images: forward(images).flatten(1, 2)
        return module

    return repaired


RELATIVE = ("simple_vit_with_relative_proj_pos_bias", "simple_vit_with_relative_proj_pos_bias:SimpleViT")
NEAR = IMAGE | BLOCKS | dict(num_distance_basis=3, max_dist=2)
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0, num_distance_basis=4, max_dist=6)

CASES = [
    Case(*RELATIVE, INPUT, 80533, IMAGE | BLOCKS, maps=2),
    Case(*RELATIVE, INPUT, 11197, NEAR, "near", maps=2),
    Case(*RELATIVE, OBLONG_INPUT, 10472, TOKENS, "oblong-tokens", maps=2, repairs=(tokens, sequence)),
]

EXEMPT = {"large_images": "computes positions for any image"}
# Our own counts, as upstream names no paper.
PUBLISHED = {
    "simple_vit_with_relative_proj_pos_bias/ti16": (6_287_272, 0),
    "simple_vit_with_relative_proj_pos_bias/s16": (23_238_376, 0),
    "simple_vit_with_relative_proj_pos_bias/b16": (90_318_184, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    positions = dict(num_distance_basis=rng.randint(1, 9), max_dist=rng.choice((1, 2, 3, 8, 512)))
    yield Case(*RELATIVE, shape, 0, image | draw_blocks(rng) | positions)
