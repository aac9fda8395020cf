"""Rows of `simple_vit_with_patch_dropout`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

PATCH_DROPOUT = ("simple_vit_with_patch_dropout", "simple_vit_with_patch_dropout:SimpleViT")
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0, patch_dropout=0.25)

CASES = [
    Case(*PATCH_DROPOUT, INPUT, 10261, IMAGE | BLOCKS, maps=2),
    Case(*PATCH_DROPOUT, OBLONG_INPUT, 9096, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
]

EXEMPT = {
    "large_images": "computes positions for any image",
    "dropout_count": "upstream drops patches by a module of its own",
}

# Our own counts at SimpleViT's sizes: patch dropout has no parameters, and the paper has other models (DeiT, Swin).
PUBLISHED = {
    "simple_vit_with_patch_dropout/ti16": (5_672_104, 0),
    "simple_vit_with_patch_dropout/s16": (21_958_504, 0),
    "simple_vit_with_patch_dropout/b16": (86_381_800, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    yield Case(*PATCH_DROPOUT, shape, 0, image | draw_blocks(rng) | dict(patch_dropout=rng.random()))
