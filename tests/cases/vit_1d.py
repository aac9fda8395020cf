"""Rows of `vit_1d`."""

from tests.cases.case import BLOCKS, Case, draw_blocks
from tests.cases.repairs import channels_last, tokens

VIT = ("vit_1d", "vit_1d:ViT")
SERIES = dict(seq_len=20, patch_size=4, num_classes=5)
ONE_HEAD = SERIES | BLOCKS | dict(patch_size=5, channels=2, heads=1, dim_head=24)

TOKENS = SERIES | BLOCKS | dict(channels=1, num_classes=0)

CASES = [
    Case(*VIT, (2, 20, 3), 9541, SERIES | BLOCKS, maps=2, repairs=(channels_last,)),
    Case(*VIT, (2, 10, 2), 8265, ONE_HEAD, "shorter-one-head", maps=2, repairs=(channels_last,)),
    Case(*VIT, (2, 20, 1), 9160, TOKENS, "tokens", maps=2, repairs=(tokens, channels_last)),
]

PUBLISHED = {}  # the paper has no models of series


def example(model):
    return (1, model.seq_len, model.channels)


def draw_series(rng):
    """Randomly drawn arguments of a series in patches, and the shape of the input."""
    patch, channels = rng.randint(1, 6), rng.randint(1, 3)
    length = patch * rng.randint(2, 9)
    series = dict(seq_len=length, patch_size=patch, channels=channels, num_classes=rng.randint(2, 12))
    return series, (2, length, channels)


def draw(rng):
    series, shape = draw_series(rng)
    yield Case(*VIT, shape, 0, series | draw_blocks(rng), repairs=(channels_last,))
