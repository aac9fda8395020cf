"""Rows of `attn_residual_with_dca_simple_vit`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

DCA = ("attn_residual_with_dca_simple_vit", "attn_residual_with_dca_simple_vit:SimpleViT")
GROUPED = IMAGE | BLOCKS | dict(heads=4, head_groups=2, ffn_heads=4, temperature=100)
TOKENS = IMAGE | BLOCKS | OBLONG | dict(head_groups=3, num_classes=0, gate=False, eps=1e-3)

CASES = [
    Case(*DCA, INPUT, 12581, IMAGE | BLOCKS, maps=2),
    Case(*DCA, INPUT, 14549, GROUPED, "grouped", maps=2),
    Case(*DCA, OBLONG_INPUT, 11600, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
]

EXEMPT = {"large_images": "computes positions for any image"}
# Our own counts, as the papers are about text.
PUBLISHED = {
    "attn_residual_with_dca_simple_vit/ti16": (5_985_640, 0),
    "attn_residual_with_dca_simple_vit/s16": (23_189_992, 0),
    "attn_residual_with_dca_simple_vit/b16": (91_260_136, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    ffn_heads = rng.randint(1, 4)
    head_groups = rng.randint(1, 3)
    mixes = dict(head_groups=head_groups, ffn_heads=ffn_heads, gate=rng.random() < 0.5)
    sizes = dict(heads=head_groups * rng.randint(1, 3), mlp_dim=ffn_heads * rng.randint(4, 12))
    yield Case(*DCA, shape, 0, image | draw_blocks(rng) | sizes | mixes)
