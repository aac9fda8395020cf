"""Softmax that keeps its digits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def softmax(scores: Float[Array, "*batch k"]) -> Float[Array, "*batch k"]:
    """Softmax over the last axis, reduced in float32 and returned in the dtype of `scores`."""
    return jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(scores.dtype)
