"""Features of an image from an encoder's output in any form: one vector, or one for each region.

Encoders give vectors (b, d), tokens (b, n, d), or maps (b, h, w, d) of any number of axes; of several outputs the first
counts. Of tokens the first is the class token if the encoder says so by `pool="cls"`.
"""

import math
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.tokens import pool_tokens


def pooled(encoder: nn.Module, outputs: Any) -> Float[Array, "b d"]:
    """One vector for an image: the class token, or the mean of tokens or map."""
    x = _first(outputs)
    if x.ndim == 3:
        return pool_tokens(x, getattr(encoder, "pool", "mean"))
    return x.mean(axis=tuple(range(1, x.ndim - 1)))


def regions(encoder: nn.Module, outputs: Any) -> Float[Array, "b n d"]:
    """A vector for each place of the map, or each token but the class token. Raises ValueError where there is none."""
    x = _first(outputs)
    if x.ndim == 2:
        raise ValueError(f"encoder={type(encoder).__name__}: expected one that gives tokens or a map, not a vector")
    if x.ndim == 3:
        return x[:, 1:] if getattr(encoder, "pool", "mean") == "cls" else x
    return x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])


def check_encoder(encoder: nn.Module) -> None:
    """Raises ValueError for an encoder that gives logits."""
    if getattr(encoder, "num_classes", 0):
        raise ValueError(f"encoder.num_classes={encoder.num_classes}: expected 0, an encoder that gives features")


def _first(outputs: Any) -> Array:
    return jax.tree.leaves(outputs)[0]
