"""Rows of `simple_vit_with_specialized_cls`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens

CLS = ("simple_vit_with_specialized_cls", "simple_vit_with_specialized_cls:SimpleViT")
PLAIN = IMAGE | BLOCKS | dict(depth=3)
EVERY_LAYER = IMAGE | BLOCKS | dict(specialize_qkv_depth=2)
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0, specialize_qkv_depth=1)


def _after_last_attention(block: str) -> tuple[str, ...]:
    """Norms of patches that the class token does not read any more."""
    norms = (f"transformer/{block}/patch_norm", "transformer/patch_norm")
    return tuple(f"{norm}/{leaf}" for norm in norms for leaf in ("scale", "bias"))


CASES = [
    Case(*CLS, INPUT, 16733, PLAIN, maps=3, unused=_after_last_attention("ff_2")),
    Case(*CLS, INPUT, 13981, EVERY_LAYER, "every-layer", maps=2, unused=_after_last_attention("ff_1")),
    Case(*CLS, OBLONG_INPUT, 11088, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
]

EXEMPT = {"large_images": "computes positions for any image"}

# Our own counts at SimpleViT's sizes; tests/models checks the paper's statement that 8% are added.
PUBLISHED = {
    "simple_vit_with_specialized_cls/ti16": (6_124_264, 0),
    "simple_vit_with_specialized_cls/s16": (23_747_560, 0),
    "simple_vit_with_specialized_cls/b16": (93_498_856, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    depths = dict(depth=rng.randint(1, 4), specialize_qkv_depth=rng.choice((None, 0, 1, 2, 5)))
    yield Case(*CLS, shape, 0, image | draw_blocks(rng) | depths)
