"""The products of queries and keys."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.layers.execution import target_platform


def attention_scores(q: Float[Array, "*b h i d"], k: Float[Array, "*b h j d"]) -> Float[Array, "*b h i j"]:
    """Return the product of every query with every key; on a TPU in float32.

    A TPU adds products in float32. Without the rounding to bfloat16, its compiler fuses softmax with the matmuls around
    it (docs/tpu.md).
    """
    wide = jnp.promote_types(q.dtype, jnp.float32) if target_platform() == "tpu" else None
    return jnp.einsum("...id,...jd->...ij", q, k, preferred_element_type=wide)
