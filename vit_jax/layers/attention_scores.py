"""The products of queries and keys."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.layers.execution import batch_parts, target_platform

# A TPU's fast memory holds float32 scores of this size together with their gradients: those of 32 images of 197 tokens
# and 6 heads take 30 MB, and those of 12 heads no longer fit (docs/tpu.md).
WIDE_BYTES = 40e6


def attention_scores(
    q: Float[Array, "*b h i d"], k: Float[Array, "*b h j d"], scale: float | Array
) -> Float[Array, "*b h i j"]:
    """Return the product of every query with every key, times `scale`; on a TPU in float32, if a chip can hold that.

    A TPU adds products in float32. Without the rounding to bfloat16, its compiler fuses softmax with the matmuls around
    it (docs/tpu.md). If they are rounded, queries are multiplied by `scale` instead, of which there are fewer.
    """
    if target_platform() != "tpu":
        return jnp.einsum("...id,...jd->...ij", q, k) * scale
    if are_wide(q, k):
        wide = jnp.promote_types(q.dtype, jnp.float32)
        return jnp.einsum("...id,...jd->...ij", q, k, preferred_element_type=wide) * scale
    return jnp.einsum("...id,...jd->...ij", q * scale, k)


def are_wide(q: Float[Array, "*b h i d"], k: Float[Array, "*b h j d"]) -> bool:
    """Whether a TPU's fast memory holds the scores in float32."""
    return 4 * math.prod(q.shape[:-1]) * k.shape[-2] <= WIDE_BYTES * batch_parts()
