"""Rows of `crossformer`."""

import math

from tests.cases.case import Case
from tests.cases.repairs import feature_map, no_gradient_of, sized


def paper_offsets(make):
    """`paper_position_bias`: offsets from 1 - window to window - 1, so that upstream's row length is right."""
    import torch
    from vit_pytorch import crossformer

    def repaired(*, paper_position_bias, **kwargs):
        module = make(**kwargs)
        for attention in module.modules():
            if isinstance(attention, crossformer.Attention):
                attention.dpb.register_forward_pre_hook(lambda dpb, args: inner(*args))
        return module

    def inner(offsets):
        reach = offsets.max()
        return offsets[(offsets.abs() < reach).all(dim=-1)] if reach > 1 else torch.zeros(1, 2)

    return repaired


# Position biases shift all scores of a query nearly equally, and their last bias exactly equally.
FAINT = ("dpb",)

CROSS = ("crossformer", "crossformer:CrossFormer")
WINDOWS = dict(local_window_size=(4, 4, 2, 1), global_window_size=(8, 4, 1, 1))
PLAIN = dict(num_classes=5, dim=32, depth=(1, 1, 0, 0), **WINDOWS)
PLAIN |= dict(cross_embed_kernel_sizes=((2, 6, 4), (2, 4), (4,), (2, 2)), cross_embed_strides=2)
PAPER = PLAIN | dict(paper_position_bias=True)
MAP = dict(num_classes=0, dim=(40, 36, 32, 64), depth=(1, 1, 0, 0), local_window_size=(3, 6, 1, 2), channels=1)
MAP |= dict(global_window_size=(6, 3, 1, 2), image_size=(13, 25), cross_embed_strides=(2, 1, 3, 1))
MAP |= dict(cross_embed_kernel_sizes=((3, 5), (1, 3), (3,), (1, 3)))
LAST_BIAS = no_gradient_of("dpb.9.bias")

CASES = [
    Case(*CROSS, (2, 16, 16, 3), 83785, PLAIN, maps=4, repairs=(LAST_BIAS,), faint=FAINT),
    Case(
        *CROSS, (2, 16, 16, 3), 83785, PAPER, "paper-offsets", maps=4, repairs=(LAST_BIAS, paper_offsets), faint=FAINT
    ),
    Case(
        *CROSS,
        (2, 13, 25, 1),
        97156,
        MAP,
        "odd-kernels-map",
        maps=4,
        repairs=(LAST_BIAS, feature_map, sized),
        faint=FAINT,
    ),
]

# Table 2 of the paper: 30.7, 52.0 and 92.0 million.
PUBLISHED = {"crossformer/s": (30.7e6, 0.02), "crossformer/b": (52.0e6, 0.02), "crossformer/l": (92.0e6, 0.02)}

EXEMPT = {
    "bad_sizes": "has no patches",
    "large_images": "takes larger images",
    "unfilled_images": "has messages of its own",
}


def draw(rng):
    choose = lambda *choices: tuple(rng.choice(choices) for _ in range(4))
    strides = tuple(rng.sample((1, 1, 1, rng.choice((2, 3))), 4))
    side = 12 * math.prod(strides)
    # With few pixels, units of the bias network are on, or off, for all offsets: their gradient is rounding error.
    short, long = choose(3, 4, 6), choose(3, 4, 6)
    kernels = tuple(tuple(stride + 2 * rng.randint(0, 2) for _ in range(rng.randint(1, 3))) for stride in strides)
    kwargs = dict(dim=choose(32, 40, 64), depth=choose(0, 1), local_window_size=short, global_window_size=long)
    kwargs |= dict(cross_embed_kernel_sizes=kernels, cross_embed_strides=strides, num_classes=rng.randint(2, 12))
    channels = rng.randint(1, 3)
    yield Case(
        *CROSS, (2, side, side, channels), 0, kwargs | dict(channels=channels), repairs=(LAST_BIAS,), faint=FAINT
    )
