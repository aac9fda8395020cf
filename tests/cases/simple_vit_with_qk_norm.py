"""Rows of `simple_vit_with_qk_norm`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens


def linear_head(make):
    """A classifier in place of upstream's norm."""
    from torch import nn

    def repaired(*, norm_head, num_classes, dim, **kwargs):
        module = make(num_classes=num_classes, dim=dim, **kwargs)
        module.linear_head = nn.Linear(dim, num_classes)
        return module

    return repaired


QK_NORM = ("simple_vit_with_qk_norm", "simple_vit_with_qk_norm:SimpleViT")
PLAIN = IMAGE | BLOCKS | dict(norm_head=False)
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0)

CASES = [
    Case(*QK_NORM, INPUT, 10357, PLAIN, maps=2, repairs=(linear_head,)),
    Case(*QK_NORM, INPUT, 10280, IMAGE | BLOCKS, "norm-head", maps=2),
    Case(*QK_NORM, OBLONG_INPUT, 9192, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
]

EXEMPT = {"large_images": "computes positions for any image"}
PUBLISHED = {"simple_vit_with_qk_norm/22b": (21_743e6, 0.001)}  # table 1 of the paper


def draw(rng):
    image, shape = draw_image(rng)
    yield Case(*QK_NORM, shape, 0, image | draw_blocks(rng))
