"""Rotary position embedding. Source: Su et al. 2021 (RoFormer), arXiv:2104.09864."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def rotate(x: Float[Array, "b h n f"], sin_cos: Float[Array, "2 p r"]) -> Float[Array, "b h n f"]:
    """Rotate pairs of the first r features of every token but the first (the class token) by the given angles."""
    sin, cos = sin_cos[:, None, None]
    turned, rest = x[:, :, 1:, : sin.shape[-1]], x[:, :, 1:, sin.shape[-1] :]
    quarter = jnp.stack([-turned[..., 1::2], turned[..., ::2]], axis=-1).reshape(turned.shape)
    patches = jnp.concatenate([turned * cos + quarter * sin, rest], axis=-1)
    return jnp.concatenate([x[:, :, :1], patches], axis=2)
