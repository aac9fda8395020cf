"""Rows of `simple_vit_with_sparse_gating`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image


def tokens(make):
    """`num_classes=0`: the patches after the last norm. Upstream's transformer also returns its gates."""
    from torch import nn

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        module.linear_head = nn.Identity()
        encoded, forward = [], module.forward
        module.transformer.register_forward_hook(lambda module, args, output: encoded.append(output[0]))
        module.forward = lambda images: (forward(images), encoded.pop()[:, module.num_register_tokens :])[1]
        return module

    return repaired


GATED = ("simple_vit_with_sparse_gating", "simple_vit_with_sparse_gating:SimpleViTWithSparseGating")
OTHER = IMAGE | BLOCKS | dict(num_register_tokens=0, dim_mask=7)
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0, num_register_tokens=2, dim_mask=3)

CASES = [
    Case(*GATED, INPUT, 11509, IMAGE | BLOCKS, maps=2),
    Case(*GATED, INPUT, 12277, OTHER, "no-registers", maps=2),
    Case(*GATED, OBLONG_INPUT, 10008, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
]

EXEMPT = {"large_images": "computes positions for any image"}
# Our own counts, as upstream names no paper.
PUBLISHED = {
    "simple_vit_with_sparse_gating/ti16": (5_728_168, 0),
    "simple_vit_with_sparse_gating/s16": (22_181_224, 0),
    "simple_vit_with_sparse_gating/b16": (87_269_608, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    gating = dict(num_register_tokens=rng.randint(0, 5), dim_mask=rng.randint(1, 8))
    yield Case(*GATED, shape, 0, image | draw_blocks(rng) | gating)
