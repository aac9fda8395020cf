"""Learned tokens and positions around a sequence of patches, and the way from tokens to one vector."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def prepend(tokens: Float[Array, "*_ m d"], x: Float[Array, "b n d"]) -> Float[Array, "b m_n d"]:
    """The same `tokens`, (m, d) or (1, m, d), in front of every sequence of the batch."""
    return jnp.concatenate([_for_batch(tokens, x), x], axis=1)


def append(x: Float[Array, "b n d"], tokens: Float[Array, "*_ m d"]) -> Float[Array, "b n_m d"]:
    """The same `tokens`, (m, d) or (1, m, d), behind every sequence of the batch."""
    return jnp.concatenate([x, _for_batch(tokens, x)], axis=1)


def add_positions(x: Float[Array, "b n d"], positions: Float[Array, "*_ m d"]) -> Float[Array, "b n d"]:
    """`x` plus the first n of `positions`, (m, d) or (1, m, d). Models check the size of their input beforehand."""
    return x + positions.reshape(1, *positions.shape[-2:])[:, : x.shape[1]]


def pool_tokens(x: Float[Array, "b n d"], pool: str) -> Float[Array, "b d"]:
    """One vector for an image: its first token for "cls", the mean of all for "mean"."""
    return x.mean(axis=1) if pool == "mean" else x[:, 0]


def _for_batch(tokens: Array, x: Array) -> Array:
    return jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape[-2:]))
