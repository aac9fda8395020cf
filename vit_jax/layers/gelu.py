"""The exact GELU, as torch has it."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vit_jax.layers.execution import target_platform


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x times the normal distribution function of x, computed in float32. Source: arXiv:1606.08415."""
    # Checkpointed, the gradient keeps x alone. Elsewhere XLA must be stopped from keeping erf too; a TPU's compiler
    # computes it again of itself, and what would stop it keeps it from fusing that with a product (docs/tpu.md).
    checkpointed = jax.checkpoint(_gelu, prevent_cse=target_platform() != "tpu")
    return checkpoint_name(checkpointed(x), "gelu")  # named so that a policy can keep it, as that of loops does


# XLA computes erf several times faster than the erfc of jax.nn.gelu.
def _gelu(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * lax.erf(wide * 0.5**0.5))).astype(x.dtype)
