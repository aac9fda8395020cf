"""Features from the output of any encoder: one vector for an image, or one for each region.

Encoders return vectors (b, d), tokens (b, n, d), or feature maps (b, h, w, d) with any number of axes. Of several
outputs the first one is used. The first token is the class token if the encoder has `pool="cls"`. An encoder with other
tokens before the patches has their number as `tokens_before`.
"""

import math
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float


def pooled(encoder: nn.Module, outputs: Any) -> Float[Array, "b d"]:
    """Return one vector for each image: the class token, or the mean of the patches or the feature map."""
    x = _first(outputs)
    if x.ndim == 3:
        return x[:, 0] if getattr(encoder, "pool", "mean") == "cls" else x[:, _before(encoder) :].mean(axis=1)
    return x.mean(axis=tuple(range(1, x.ndim - 1)))


def regions(encoder: nn.Module, outputs: Any) -> Float[Array, "b n d"]:
    """Return a vector for each pixel of the feature map, or each token but those before the patches.

    Raises:
        ValueError: for an encoder that returns one vector for an image.
    """
    x = _first(outputs)
    if x.ndim == 2:
        raise ValueError(f"encoder={type(encoder).__name__}: expected one that returns tokens or a map, not a vector")
    if x.ndim == 3:
        return x[:, _before(encoder) :]
    return x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])


def _before(encoder: nn.Module) -> int:
    """Number of tokens before the patches."""
    return getattr(encoder, "tokens_before", int(getattr(encoder, "pool", "mean") == "cls"))


def check_encoder(encoder: nn.Module) -> None:
    """Raise ValueError for an encoder that returns logits."""
    if getattr(encoder, "num_classes", 0):
        raise ValueError(f"encoder.num_classes={encoder.num_classes}: expected 0, an encoder that returns features")


def _first(outputs: Any) -> Array:
    return jax.tree.leaves(outputs)[0]
