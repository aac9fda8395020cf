"""Rows of `vit_nd_pope`, over one to four axes."""

from tests.cases.case import INPUT, Case, draw_blocks
from tests.cases.vit_nd import (
    PLAIN,
    SEQUENCE,
    SEQUENCE_INPUT,
    SEQUENCES,
    SPACETIME,
    SPACETIME_INPUT,
    VIDEO,
    VIDEO_INPUT,
    dense,
    draw_array,
    example,
)
from tests.cases.vit_nd_rotary import CAUSAL_TOKENS, GRID, ONE_HEAD, embed

__all__ = ["example"]


def uniform_bias(make):
    """The bias is drawn uniformly; upstream raises, as it writes into a parameter that requires gradients."""
    import math

    from torch import nn

    def repaired(*, pope_init_learned_bias_uniform, **kwargs):
        module = make(**kwargs)
        nn.init.uniform_(module.polar_emb.learned_bias, -2 * math.pi, 0.0)
        return module

    return repaired


POPE = ("vit_nd_pope", "vit_nd_pope:ViTND")
FREQUENCIES = SEQUENCE | dict(pope_min_freq=0.5, pope_max_freq=20.0, pope_p_zero_freqs=0.3, dim_head=7)
UNIFORM = VIDEO | dict(pope_init_learned_bias_uniform=True)

CASES = [
    Case(*POPE, VIDEO_INPUT, 10813, VIDEO, **PLAIN),
    Case(*POPE, VIDEO_INPUT, 10813, UNIFORM, "uniform-bias", maps=2, repairs=(dense, uniform_bias)),
    Case(*POPE, SEQUENCE_INPUT, 8650, FREQUENCIES, "sequence-frequencies", **SEQUENCES),
    Case(*POPE, INPUT, 9037, ONE_HEAD, "square-one-head", **PLAIN),
    Case(*POPE, INPUT, 10112, CAUSAL_TOKENS, "causal-tokens", maps=2, repairs=(dense, embed)),
    Case(*POPE, SPACETIME_INPUT, 9949, SPACETIME | dict(causal_dims=(0, 2)), "4d-causal", **PLAIN),
    Case(*POPE, (2, 6, 4, 9, 3), 10813, VIDEO, "other-size-embed", **PLAIN, **GRID),
]

# Our own counts; there are no published ones.
PUBLISHED = {"vit_nd_pope/upstream": (20_207_592, 0)}


def draw(rng):
    array, shape = draw_array(rng)
    pope = dict(pope_min_freq=rng.uniform(0.1, 2), pope_max_freq=rng.uniform(2, 50), pope_p_zero_freqs=rng.random())
    yield Case(*POPE, shape, 0, array | draw_blocks(rng) | pope, repairs=(dense,))
