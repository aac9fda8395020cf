"""Softmax computed in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.layers.execution import target_platform


@jax.custom_jvp
def softmax(scores: Float[Array, "*batch k"]) -> Float[Array, "*batch k"]:
    """Return the softmax over the last axis, computed in float32, in the dtype of `scores`.

    On a TPU, the exponentials of bfloat16 are rounded to bfloat16 before they are added in float32: only then does its
    compiler fuse them with the matmul before (docs/tpu.md).
    """
    wide = scores if target_platform() == "tpu" else scores.astype(jnp.float32)
    exp = jnp.exp(wide - scores.max(axis=-1, keepdims=True))
    return (exp / exp.sum(axis=-1, keepdims=True, dtype=jnp.float32)).astype(scores.dtype)


# The gradient needs only the result. With jax.nn.softmax, XLA's CPU backend saves three arrays of that size.
@softmax.defjvp
def _softmax_jvp(primals, tangents):
    probs = softmax(*primals)
    p = probs.astype(jnp.float32)
    weighted = p * tangents[0]
    return probs, (weighted - p * weighted.sum(axis=-1, keepdims=True)).astype(probs.dtype)
