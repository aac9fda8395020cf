"""Rows of `distill:DistillableViT`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

DISTILLABLE = ("distill:DistillableViT", "distill:DistillableViT")
PLAIN = IMAGE | BLOCKS
TOKEN = dict(distill_token=(1, 24))

CASES = [
    Case(*DISTILLABLE, INPUT, 10741, PLAIN, maps=2),
    Case(*DISTILLABLE, INPUT, 10741, PLAIN, "token", maps=2, keyword_inputs=TOKEN),
    Case(*DISTILLABLE, OBLONG_INPUT, 9557, PLAIN | OBLONG | dict(pool="mean"), "oblong", maps=2, keyword_inputs=TOKEN),
    Case(*DISTILLABLE, INPUT, 10616, PLAIN | dict(num_classes=0), "tokens", maps=2, repairs=(tokens,)),
]

PUBLISHED = {}


def token_parameters(make):
    """Class token and positions as (n, d): the distillable T2TViT and EfficientViT read (n, d), but store (1, n, d)."""
    from torch import nn

    def repaired(**kwargs):
        module = make(**kwargs)
        module.cls_token = nn.Parameter(module.cls_token.detach()[0])
        module.pos_embedding = nn.Parameter(module.pos_embedding.detach()[0])
        return module

    return repaired


def draw(rng):
    image, shape = draw_image(rng)
    blocks = draw_blocks(rng)
    token = dict(distill_token=(1, blocks["dim"]))
    yield Case(*DISTILLABLE, shape, 0, image | blocks, keyword_inputs=token)
