"""Rows of `simple_vit_orthog_residual_update`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

ORTHOGONAL = ("simple_vit_orthog_residual_update", "simple_vit_orthog_residual_update:SimpleViT")
LEARNED = IMAGE | BLOCKS | dict(orthog_residual_update_kwargs=dict(learned=True))
SINGLE = dict(orthog_residual_update_kwargs=dict(double_precision=False))
TOKENS = IMAGE | BLOCKS | OBLONG | SINGLE | dict(num_classes=0)

CASES = [
    Case(*ORTHOGONAL, INPUT, 10261, IMAGE | BLOCKS, maps=2),
    Case(*ORTHOGONAL, INPUT, 10461, LEARNED, "learned", maps=2),
    Case(*ORTHOGONAL, OBLONG_INPUT, 9096, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
]

EXEMPT = {"large_images": "computes positions for any image"}

# Our own counts: updates have no parameters, and the paper gives no counts of its ViT-S and ViT-B.
PUBLISHED = {
    "simple_vit_orthog_residual_update/ti16": (5_672_104, 0),
    "simple_vit_orthog_residual_update/s16": (21_958_504, 0),
    "simple_vit_orthog_residual_update/b16": (86_381_800, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    options = dict(learned=rng.random() < 0.5, double_precision=rng.random() < 0.5)
    yield Case(*ORTHOGONAL, shape, 0, image | draw_blocks(rng) | dict(orthog_residual_update_kwargs=options))
