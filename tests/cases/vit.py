"""Rows of `vit`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image

VIT = ("vit", "vit:ViT")
SMALLER = IMAGE | BLOCKS | dict(heads=1, dim_head=24)

CASES = [
    Case(*VIT, INPUT, 10741, IMAGE | BLOCKS, maps=2),
    Case(*VIT, INPUT, 10693, IMAGE | BLOCKS | dict(pool="mean"), "mean", maps=2),
    Case(*VIT, OBLONG_INPUT, 9480, IMAGE | BLOCKS | OBLONG | dict(num_classes=0), "oblong-tokens", maps=2),
    Case(*VIT, (2, 8, 12, 3), 9541, SMALLER, "smaller-one-head", maps=2),
    Case("vit:Transformer", "vit:Transformer", (2, 7, 24), 8864, BLOCKS, maps=2),
]


def _published(count: int, patch: int, dim: int, depth: int) -> tuple[int, float]:
    """Count of the authors' ViT (and DeiT), plus two norms around the projection, minus the biases of q, k and v."""
    return count + 2 * 3 * patch**2 + 2 * dim - 3 * dim * depth, 0.0


PUBLISHED = {
    "vit/ti16": _published(5_717_416, 16, 192, 12),
    "vit/s16": _published(22_050_664, 16, 384, 12),
    "vit/b16": _published(86_567_656, 16, 768, 12),
    "vit/b32": _published(88_224_232, 32, 768, 12),
    "vit/l16": _published(304_326_632, 16, 1024, 24),
    "vit/h14": _published(632_045_800, 14, 1280, 32),
}


def draw(rng):
    image, shape = draw_image(rng)
    blocks = draw_blocks(rng)
    yield Case(*VIT, shape, 0, image | blocks | dict(pool=rng.choice(("cls", "mean"))))
    yield Case("vit:Transformer", "vit:Transformer", (2, rng.randint(2, 20), blocks["dim"]), 0, blocks)
