"""Rows of `efficient`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, Inner, draw_blocks, draw_image
from tests.cases.repairs import oblong_patches, tokens

EFFICIENT = ("efficient", "efficient:ViT")
TRANSFORMER = Inner("vit:Transformer", "vit:Transformer", BLOCKS)
PLAIN = IMAGE | dict(dim=24, transformer=TRANSFORMER)
TOKENS = PLAIN | OBLONG | dict(num_classes=0)

CASES = [
    Case(*EFFICIENT, INPUT, 10789, PLAIN, maps=2),
    Case(*EFFICIENT, INPUT, 10789, PLAIN | dict(pool="mean"), "mean", maps=2),
    Case(*EFFICIENT, OBLONG_INPUT, 9480, TOKENS, "oblong-tokens", maps=2, repairs=(oblong_patches, tokens)),
]

PUBLISHED = {}


def draw(rng):
    image, shape = draw_image(rng)
    transformer = Inner("vit:Transformer", "vit:Transformer", draw_blocks(rng))
    around = dict(dim=transformer.kwargs["dim"], transformer=transformer, pool=rng.choice(("cls", "mean")))
    yield Case(*EFFICIENT, shape, 0, image | around)
