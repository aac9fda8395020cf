"""Rows of `vit_with_keel_post_ln`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image

KEEL = ("vit_with_keel_post_ln", "vit_with_keel_post_ln:ViT")
PLAIN = IMAGE | BLOCKS
MEAN = PLAIN | dict(pool="mean", keel_residual_scale=1.5, heads=1, dim_head=24)
TOKENS = PLAIN | OBLONG | dict(depth=3, num_classes=0)

CASES = [
    Case(*KEEL, INPUT, 10669, PLAIN, maps=2),
    Case(*KEEL, INPUT, 9421, MEAN, "mean-scale-one-head", maps=2),
    Case(*KEEL, OBLONG_INPUT, 13816, TOKENS, "oblong-tokens", maps=3),
]


def _published(count: int, dim: int) -> tuple[int, float]:
    """Count of the authors' ViT with one more norm, norms without bias, and no biases of q, k and v."""
    before, behind = 2 * 3 * 16**2 + 2 * dim, 23 * dim - 2 * dim
    return count + before + behind - 24 * dim - 12 * 3 * dim, 0.0


PUBLISHED = {  # ViT's sizes, as the paper has language models
    "vit_with_keel_post_ln/s16": _published(22_050_664, 384),
    "vit_with_keel_post_ln/b16": _published(86_567_656, 768),
}


def draw(rng):
    image, shape = draw_image(rng)
    keel = dict(depth=rng.randint(2, 3), pool=rng.choice(("cls", "mean")), keel_residual_scale=rng.choice((None, 0.7)))
    yield Case(*KEEL, shape, 0, image | draw_blocks(rng) | keel)
