"""Rows of `vit_with_patch_merger`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

MERGER = ("vit_with_patch_merger", "vit_with_patch_merger:ViT")
PLAIN = IMAGE | BLOCKS
LATE = PLAIN | dict(patch_merge_layer=2, patch_merge_num_tokens=20, heads=1, dim_head=24)
NEVER = PLAIN | dict(depth=1)
TOKENS = PLAIN | OBLONG | dict(num_classes=0, patch_merge_num_tokens=3)
MERGER_PARAMETERS = tuple(f"transformer/patch_merger/{name}" for name in ("queries", "norm/scale", "norm/bias"))

CASES = [
    Case(*MERGER, INPUT, 10957, PLAIN, maps=3),
    Case(*MERGER, INPUT, 10045, LATE, "late-one-head", maps=3),
    Case(*MERGER, INPUT, 6549, NEVER, "never", maps=1, unused=MERGER_PARAMETERS),
    Case(*MERGER, OBLONG_INPUT, 9576, TOKENS, "oblong-tokens", maps=3, repairs=(tokens,)),
]


def _published(count: int, patch: int, dim: int, depth: int) -> tuple[int, float]:
    """Count of the authors' ViT, plus two norms around the projection, minus class token and biases of q, k and v."""
    merger = 8 * dim + 2 * dim
    return count - dim + merger + 2 * 3 * patch**2 + 2 * dim - 3 * dim * depth, 0.0


PUBLISHED = {
    "vit_with_patch_merger/b32": _published(88_224_232, 32, 768, 12),
    "vit_with_patch_merger/b16": _published(86_567_656, 16, 768, 12),
    "vit_with_patch_merger/l16": _published(304_326_632, 16, 1024, 24),
}


def draw(rng):
    image, shape = draw_image(rng)
    blocks = draw_blocks(rng)
    merge = dict(patch_merge_layer=rng.randint(1, blocks["depth"]), patch_merge_num_tokens=rng.randint(1, 12))
    yield Case(*MERGER, shape, 0, image | blocks | merge)
