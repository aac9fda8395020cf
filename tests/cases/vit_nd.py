"""Rows of `vit_nd`, over one to four axes."""

import numpy as np

from tests.cases.case import BLOCKS, INPUT, Case, draw_blocks
from tests.cases.repairs import channels_last, tokens


def dense(make):
    """Upstream's attention for devices without its kernel, which has no gradient on a CPU."""

    def repaired(**kwargs):
        from vit_pytorch import vit_nd_masking

        vit_nd_masking.flex_attention_supported = lambda device: False
        return make(**kwargs)

    return repaired


def patches_last(make):
    """`return_nd_patches`: patches are channels-last, as ours are."""

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward

        def call(x, **kwargs):
            cls_token, patches = forward(x, **kwargs)
            return cls_token, patches.movedim(1, -1)

        module.forward = call
        return module

    return repaired


ND = ("vit_nd", "vit_nd:ViTND")
VIDEO = BLOCKS | dict(ndim=3, input_shape=(4, 8, 6), patch_size=(2, 4, 3), num_classes=5)
SEQUENCE = BLOCKS | dict(ndim=1, input_shape=12, patch_size=3, num_classes=5, channels=2)
SQUARE = BLOCKS | dict(ndim=2, input_shape=16, patch_size=4, num_classes=5)
SPACETIME = BLOCKS | dict(ndim=4, input_shape=(4, 2, 4, 6), patch_size=(2, 1, 2, 3), num_classes=5)
VIDEO_INPUT, SEQUENCE_INPUT, SPACETIME_INPUT = (2, 4, 8, 6, 3), (2, 12, 2), (2, 4, 2, 4, 6, 3)

ONE_HEAD = SQUARE | dict(heads=1, dim_head=24, emb_dropout=0.1, dropout=0.1)  # no dropout at evaluation
CAUSAL_TOKENS = SQUARE | dict(causal_dims=1, num_classes=0)
GRID = dict(options=dict(return_nd_patches=True), unused=("mlp_head/kernel", "mlp_head/bias"))
PLAIN, SEQUENCES = dict(maps=2, repairs=(dense,)), dict(maps=2, repairs=(dense, channels_last))

CASES = [
    Case(*ND, VIDEO_INPUT, 11029, VIDEO, **PLAIN),
    Case(*ND, SEQUENCE_INPUT, 9349, SEQUENCE | dict(pool="mean"), "sequence-mean", **SEQUENCES),
    Case(*ND, INPUT, 9445, ONE_HEAD, "square-one-head", **PLAIN),
    Case(*ND, INPUT, 10520, CAUSAL_TOKENS, "causal-tokens", maps=2, repairs=(dense, tokens)),
    Case(*ND, SPACETIME_INPUT, 10357, SPACETIME | dict(causal_dims=(0, 2)), "4d-causal", **PLAIN),
    Case(*ND, VIDEO_INPUT, 11029, VIDEO, "patches", maps=2, repairs=(dense, patches_last), **GRID),
]

# Our own counts, as the paper has none.
PUBLISHED = {"vit_nd/upstream": (20_339_176, 0)}


def example(model):
    return (1, *model.input_shape, model.channels)


def draw_array(rng):
    """Randomly drawn arguments of an array of two to four axes in patches, and the shape of the input."""
    ndim, channels = rng.randint(2, 4), rng.randint(1, 3)
    patch = tuple(rng.randint(1, 3) for _ in range(ndim))
    shape = tuple(int(side) * rng.randint(1, 3) for side in patch)
    causal = rng.choice((None, rng.randrange(ndim), tuple(np.flatnonzero([rng.random() < 0.5] * ndim).tolist())))
    sizes = dict(ndim=ndim, input_shape=shape, patch_size=patch, channels=channels, causal_dims=causal)
    return sizes | dict(num_classes=rng.randint(2, 12)), (2, *shape, channels)


def draw(rng):
    array, shape = draw_array(rng)
    yield Case(*ND, shape, 0, array | draw_blocks(rng) | dict(pool=rng.choice(("cls", "mean"))), repairs=(dense,))
