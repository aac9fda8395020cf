"""The exact GELU, as in torch."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vit_jax.layers.execution import target_platform


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return x times the normal distribution function of x, computed in float32. Source: arXiv:1606.08415."""
    # Under jax.checkpoint the backward pass saves only x. On CPU and GPU prevent_cse stops XLA from saving erf as well.
    # The TPU compiler recomputes erf anyway, and prevent_cse would stop it from fusing erf with a matmul (docs/tpu.md).
    checkpointed = jax.checkpoint(_gelu, prevent_cse=target_platform() != "tpu")
    return checkpoint_name(checkpointed(x), "gelu")  # named so that KEPT_IN_LOOP can save it


# XLA computes erf several times faster than erfc, which jax.nn.gelu uses. On a TPU the tanh form, here as a sigmoid, is
# faster still; its error, at most 5e-4, is less than the rounding of bfloat16.
def _gelu(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    if x.dtype == jnp.bfloat16 and target_platform() == "tpu":
        return (wide * jax.nn.sigmoid(wide * (1.5957691 + 0.07135481 * jnp.square(wide)))).astype(x.dtype)
    return (wide * (0.5 + 0.5 * lax.erf(wide * 0.5**0.5))).astype(x.dtype)
