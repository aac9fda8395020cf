"""Rows of `deepvit`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import oblong_patches, tokens

DEEPVIT = ("deepvit", "deepvit:DeepViT")
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0)

CASES = [
    Case(*DEEPVIT, INPUT, 10771, IMAGE | BLOCKS, maps=2),
    Case(*DEEPVIT, INPUT, 10771, IMAGE | BLOCKS | dict(pool="mean"), "mean", maps=2),
    Case(*DEEPVIT, OBLONG_INPUT, 9462, TOKENS, "oblong-tokens", maps=2, repairs=(oblong_patches, tokens)),
]

# From the authors' repository, in millions.
PUBLISHED = {"deepvit/16b": (24.5e6, 0.005), "deepvit/24b": (36.3e6, 0.005), "deepvit/32b": (48.1e6, 0.005)}


def draw(rng):
    image, shape = draw_image(rng)
    heads = rng.randint(3, 4)  # a norm over two heads returns little more than signs
    yield Case(*DEEPVIT, shape, 0, image | draw_blocks(rng) | dict(heads=heads, pool=rng.choice(("cls", "mean"))))
