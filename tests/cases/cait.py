"""Rows of `cait`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import oblong_patches, tokens

CAIT = ("cait", "cait:CaiT")
TOKENS = IMAGE | BLOCKS | OBLONG | dict(cls_depth=1, num_classes=0)

CASES = [
    Case(*CAIT, INPUT, 19797, IMAGE | BLOCKS | dict(cls_depth=2), maps=4),
    Case(*CAIT, OBLONG_INPUT, 14014, TOKENS, "oblong-tokens", maps=3, repairs=(oblong_patches, tokens)),
]

# Table 3 of the paper, in millions.
PUBLISHED = {
    "cait/xxs24": (12.0e6, 0.02),
    "cait/xxs36": (17.3e6, 0.02),
    "cait/xs24": (26.6e6, 0.02),
    "cait/xs36": (38.6e6, 0.02),
    "cait/s24": (46.9e6, 0.02),
    "cait/s36": (68.2e6, 0.02),
    "cait/s48": (89.5e6, 0.02),
    "cait/m24": (185.9e6, 0.02),
    "cait/m36": (270.9e6, 0.02),
}


def draw(rng):
    image, (batch, height, width, _) = draw_image(rng)
    del image["channels"]  # upstream accepts only three
    yield Case(*CAIT, (batch, height, width, 3), 0, image | draw_blocks(rng) | dict(cls_depth=rng.randint(1, 3)))
