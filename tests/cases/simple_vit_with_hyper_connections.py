"""Rows of `simple_vit_with_hyper_connections`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens
from tests.compiler import DEFAULT_FUSION


def without_registers(make):
    """Only the tokens of the patches: upstream also returns the registers, after them."""

    def repaired(*, num_register_tokens, **kwargs):
        module = make(num_register_tokens=num_register_tokens, **kwargs)
        forward = module.forward
        module.forward = lambda images: forward(images)[:, :-num_register_tokens]
        return module

    return repaired


HYPER = ("simple_vit_with_hyper_connections", "simple_vit_with_hyper_connections:SimpleViT")
PLAIN = IMAGE | BLOCKS | dict(num_residual_streams=3)
TOKENS = PLAIN | OBLONG | dict(num_classes=0, num_residual_streams=4, num_register_tokens=2)

CASES = [
    # The gradient of a scale is one number, a sum that cancels: upstream's own float32 differs by 8e-6 from float64.
    Case(*HYPER, INPUT, 11001, PLAIN, maps=2, tolerance=3e-5),
    Case(
        *(*HYPER, OBLONG_INPUT, 9920, TOKENS, "oblong-tokens"),
        maps=2,
        repairs=(tokens, without_registers),
        # The gradient of a scale is a sum that cancels: 7e-6 from upstream's with these options, 1.2e-5 by default.
        compiler_options=DEFAULT_FUSION,
    ),
]

EXEMPT = {"large_images": "computes positions for any image"}
# Our own counts, which pin the sizes.
PUBLISHED = {
    "simple_vit_with_hyper_connections/b16": (86_477_272, 0),
    "simple_vit_with_hyper_connections/l16": (304_279_496, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    streams = dict(num_residual_streams=rng.randint(1, 5), num_register_tokens=rng.randint(0, 5))
    yield Case(*HYPER, shape, 0, image | draw_blocks(rng) | streams)
