"""The exact GELU, as torch has it."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x times the normal distribution function of x, computed in float32. Source: arXiv:1606.08415."""
    # Named so that a policy can keep it, as that of loops over blocks does.
    return checkpoint_name(_gelu(x), "gelu")


# XLA computes erf several times faster than the erfc of jax.nn.gelu. Checkpointed, the gradient keeps x alone.
@jax.checkpoint
def _gelu(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * lax.erf(wide * 0.5**0.5))).astype(x.dtype)
