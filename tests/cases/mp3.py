"""Rows of `mp3:ViT`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

MP3 = ("mp3:ViT", "mp3:ViT")
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0)

CASES = [
    Case(*MP3, INPUT, 10309, IMAGE | BLOCKS, maps=2),
    Case(*MP3, OBLONG_INPUT, 9096, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
]

EXEMPT = {"large_images": "computes positions for any image"}
PUBLISHED = {}  # the paper gives none


def draw(rng):
    image, shape = draw_image(rng)
    yield Case(*MP3, shape, 0, image | draw_blocks(rng))
