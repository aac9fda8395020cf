"""Rows of `vit_nd_rotary`, over one to four axes."""

from tests.cases.case import INPUT, Case, draw_blocks
from tests.cases.vit_nd import (
    PLAIN,
    SEQUENCE,
    SEQUENCE_INPUT,
    SEQUENCES,
    SPACETIME,
    SPACETIME_INPUT,
    SQUARE,
    VIDEO,
    VIDEO_INPUT,
    dense,
    draw_array,
    example,
)

__all__ = ["example"]


def embed(make):
    """`num_classes=0`: the model returns the grid of tokens."""
    from torch import nn

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        module.mlp_head = nn.Identity()
        forward = module.forward
        module.forward = lambda x: forward(x, return_embed=True)
        return module

    return repaired


ROTARY = ("vit_nd_rotary", "vit_nd_rotary:ViTND")
FREQUENCIES = SEQUENCE | dict(rope_min_freq=0.5, rope_max_freq=20.0, rope_p_zero_freqs=0.3)
ONE_HEAD = SQUARE | dict(heads=1, dim_head=24, emb_dropout=0.1, dropout=0.1)  # no dropout at evaluation
CAUSAL_TOKENS = SQUARE | dict(causal_dims=1, num_classes=0)
GRID = dict(options=dict(return_embed=True), unused=("mlp_head/kernel", "mlp_head/bias"))

CASES = [
    Case(*ROTARY, VIDEO_INPUT, 10789, VIDEO, **PLAIN),
    Case(*ROTARY, SEQUENCE_INPUT, 9205, FREQUENCIES, "sequence-frequencies", **SEQUENCES),
    Case(*ROTARY, INPUT, 9013, ONE_HEAD, "square-one-head", **PLAIN),
    Case(*ROTARY, INPUT, 10088, CAUSAL_TOKENS, "causal-tokens", maps=2, repairs=(dense, embed)),
    Case(*ROTARY, SPACETIME_INPUT, 9925, SPACETIME | dict(causal_dims=(0, 2)), "4d-causal", **PLAIN),
    Case(*ROTARY, (2, 6, 4, 9, 3), 10789, VIDEO, "other-size-embed", **PLAIN, **GRID),
]

# Our own counts; there are no published ones.
PUBLISHED = {"vit_nd_rotary/upstream": (20_207_080, 0)}


def draw(rng):
    array, shape = draw_array(rng)
    heads = draw_blocks(rng) | dict(dim_head=2 * rng.randint(2, 8))
    rope = dict(rope_min_freq=rng.uniform(0.1, 2), rope_max_freq=rng.uniform(2, 50), rope_p_zero_freqs=rng.random())
    yield Case(*ROTARY, shape, 0, array | heads | rope, repairs=(dense,))
