"""Rows of `vit_with_patch_dropout`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

PATCH_DROPOUT = ("vit_with_patch_dropout", "vit_with_patch_dropout:ViT")
PLAIN = IMAGE | BLOCKS | dict(patch_dropout=0.0)
MEAN = IMAGE | BLOCKS | dict(pool="mean", heads=1, dim_head=24)
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0, patch_dropout=0.5)

CASES = [
    Case(*PATCH_DROPOUT, INPUT, 10573, PLAIN, maps=2),
    Case(*PATCH_DROPOUT, INPUT, 9373, MEAN, "mean-one-head", maps=2),
    Case(*PATCH_DROPOUT, OBLONG_INPUT, 9344, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
]


def _published(count: int, dim: int) -> tuple[int, float]:
    """Count of the authors' ViT, minus the position of the class token and the biases of q, k and v."""
    return count - dim - 12 * 3 * dim, 0.0


PUBLISHED = {
    "vit_with_patch_dropout/ti16": _published(5_717_416, 192),
    "vit_with_patch_dropout/s16": _published(22_050_664, 384),
    "vit_with_patch_dropout/b16": _published(86_567_656, 768),
}


def draw(rng):
    image, shape = draw_image(rng)
    drop = dict(patch_dropout=rng.random(), pool=rng.choice(("cls", "mean")))
    yield Case(*PATCH_DROPOUT, shape, 0, image | draw_blocks(rng) | drop)
