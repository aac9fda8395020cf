"""The exact GELU, as in torch."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vit_jax.layers.execution import target_platform


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return x times the normal distribution function of x, computed in float32. Source: arXiv:1606.08415.

    On a TPU, bfloat16 gets the tanh form of the same paper, which differs by at most 5e-4.
    """
    # Under jax.checkpoint the backward pass saves only x. On CPU and GPU prevent_cse stops XLA from saving erf as well.
    # The TPU compiler recomputes erf anyway, and prevent_cse would stop it from fusing erf with a matmul (docs/tpu.md).
    checkpointed = jax.checkpoint(_gelu, prevent_cse=target_platform() != "tpu")
    return checkpoint_name(checkpointed(x), "gelu")  # named so that KEPT_IN_LOOP can save it


# XLA computes erf several times faster than erfc, which jax.nn.gelu uses. On a TPU the tanh form is faster still, and
# 1/2 + tanh(z)/2 as sigmoid(2z) more so. bfloat16 rounds numbers near 1 by up to 4e-3, eight times that error.
def _gelu(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    if x.dtype == jnp.bfloat16 and target_platform() == "tpu":
        linear = 2 * (2 / math.pi) ** 0.5
        return (wide * jax.nn.sigmoid(wide * (linear + linear * 0.044715 * jnp.square(wide)))).astype(x.dtype)
    return (wide * (0.5 + 0.5 * lax.erf(wide * 0.5**0.5))).astype(x.dtype)
