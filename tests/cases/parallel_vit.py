"""Rows of `parallel_vit`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

PARALLEL = ("parallel_vit", "parallel_vit:ViT")
PLAIN = IMAGE | BLOCKS
TOKENS = PLAIN | OBLONG | dict(num_classes=0, num_parallel_branches=3)
MEAN = PLAIN | dict(pool="mean", num_parallel_branches=1, heads=1, dim_head=24)

CASES = [
    Case(*PARALLEL, INPUT, 19413, PLAIN, maps=4),
    Case(*PARALLEL, INPUT, 9397, MEAN, "one-branch-one-head", maps=2),
    Case(*PARALLEL, OBLONG_INPUT, 27000, TOKENS, "oblong-tokens", maps=6, repairs=(tokens,)),
]


def _published(count: int, dim: int) -> tuple[int, float]:
    """Count of a ViT with 12 blocks and 24 further blocks, minus the biases of q, k and v."""
    return count + 24 * (12 * dim**2 + 13 * dim) - 36 * 3 * dim, 0.0


PUBLISHED = {"parallel_vit/s18x2": _published(22_050_664, 384), "parallel_vit/b18x2": _published(86_567_656, 768)}


def draw(rng):
    image, shape = draw_image(rng)
    branches = dict(num_parallel_branches=rng.randint(1, 3), pool=rng.choice(("cls", "mean")))
    yield Case(*PARALLEL, shape, 0, image | draw_blocks(rng) | branches)
