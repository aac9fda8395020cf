"""Rows of `vivit_with_moss` and its MOSS."""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from tests.cases.case import Case, build
from tests.cases.vivit import INPUT, MASK, OBLONG, OBLONG_INPUT, PLAIN, draw_video, example, frame_mask, tokens

__all__ = ["CASES", "PUBLISHED", "draw", "example"]


def class_last(make):
    """`cls_reads_frames`: the class token is after the frames, so that causal attention lets it read all of them."""
    import torch

    def repaired(*, cls_reads_frames, **kwargs):
        module = make(**kwargs)
        transformer, forward = module.temporal_transformer, module.temporal_transformer.forward
        transformer.forward = lambda x, **kwargs: torch.roll(forward(torch.roll(x, -1, 1), **kwargs), 1, 1)
        return module

    return repaired


def channels_behind(make):
    """Features of MOSS with channels after time, as the tests have them for torch models."""

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward
        module.forward = lambda x, **kwargs: forward(x.permute(0, 2, 3, 4, 1), **kwargs)
        return module

    return repaired


VIVIT, MOSS = ("vivit_with_moss", "vivit_with_moss:ViViT"), ("vivit_with_moss:MOSS", "vivit_with_moss:MOSS")
MEAN = PLAIN | dict(pool="mean", moss_hidden_dim=8)
FIRST = PLAIN | dict(moss_hidden_dim=8)
READS = FIRST | dict(cls_reads_frames=True, use_flash_attn=False)
SIDES = dict(moss_local_time=5, moss_local_height=1, moss_local_width=5, moss_orders=3)
AHEAD = FIRST | dict(moss_causal=False, heads=1, dim_head=24)
TOKENS = MEAN | SIDES | OBLONG | dict(num_classes=0)

# With upstream's defaults the class token reads only itself, so layers before the temporal ones have no effect.
_params = jax.eval_shape(build(Case(*VIVIT, INPUT, 0, FIRST)).init, jax.random.key(0), jnp.zeros(INPUT))["params"]
READ = ("temporal_transformer", "temporal_cls_token", "mlp_head")
IGNORED = tuple("/".join(path) for path in flatten_dict(_params) if path[0] not in READ)

FEATURES, PLAIN_MOSS = (2, 4, 3, 5, 12), dict(dim=12, hidden_dim=8)
CAUSAL_MOSS = PLAIN_MOSS | dict(local_time=1, local_height=5, local_width=3, orders=1, causal=True)

CASES = [
    Case(*VIVIT, INPUT, 21877, MEAN, maps=3),
    Case(*VIVIT, INPUT, 21925, FIRST, "class-first", maps=3, unused=IGNORED),
    Case(*VIVIT, INPUT, 21925, READS, "class-reads", maps=3, repairs=(class_last,)),
    Case(*VIVIT, INPUT, 20125, AHEAD, "not-causal-mask", maps=3, keyword_inputs=MASK),
    Case(*VIVIT, OBLONG_INPUT, 23432, TOKENS, "oblong-tokens", maps=3, repairs=(tokens,)),
    Case(*MOSS, FEATURES, 3596, PLAIN_MOSS, repairs=(channels_behind,)),
    Case(*MOSS, FEATURES, 1732, CAUSAL_MOSS, "causal", repairs=(channels_behind,)),
]

PUBLISHED = {}  # the paper has other models


def draw(rng):
    kwargs, shape = draw_video(rng)
    odd = lambda: rng.choice((1, 3, 5))
    sides = dict(local_time=odd(), local_height=odd(), local_width=odd())
    sides |= dict(hidden_dim=rng.randint(3, 12), orders=rng.randint(1, 3), causal=rng.random() < 0.5)
    kwargs |= {f"moss_{name}": value for name, value in sides.items()}
    if kwargs["moss_causal"]:
        mask = {}
        kwargs |= dict(pool="mean")  # otherwise logits ignore the video
    else:
        mask = frame_mask(rng.randint(0, 9), *shape[:2])
    yield Case(*VIVIT, shape, 0, kwargs, keyword_inputs=rng.choice(({}, mask)))
    dim = rng.randint(5, 20)
    features = (2, rng.randint(2, 4), rng.randint(2, 4), rng.randint(2, 4), dim)
    yield Case(*MOSS, features, 0, sides | dict(dim=dim), repairs=(channels_behind,))
