"""Functions on sequences of tokens: add learned tokens and positions, and pool."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def prepend(tokens: Float[Array, "*_ m d"], x: Float[Array, "b n d"]) -> Float[Array, "b m_n d"]:
    """Put the same `tokens`, (m, d) or (1, m, d), before every sequence of the batch."""
    return jnp.concatenate([_for_batch(tokens, x), x], axis=1)


def append(x: Float[Array, "b n d"], tokens: Float[Array, "*_ m d"]) -> Float[Array, "b n_m d"]:
    """Put the same `tokens`, (m, d) or (1, m, d), after every sequence of the batch."""
    return jnp.concatenate([x, _for_batch(tokens, x)], axis=1)


def add_positions(x: Float[Array, "b n d"], positions: Float[Array, "*_ m d"]) -> Float[Array, "b n d"]:
    """Add the first n of `positions`, (m, d) or (1, m, d), to `x`. Models must check before that n is at most m."""
    return x + positions.reshape(1, *positions.shape[-2:])[:, : x.shape[1]]


def pool_tokens(x: Float[Array, "b n d"], pool: str) -> Float[Array, "b d"]:
    """Return one vector for each image: the first token if `pool` is "cls", the mean of all tokens if "mean"."""
    return x.mean(axis=1) if pool == "mean" else x[:, 0]


def _for_batch(tokens: Array, x: Array) -> Array:
    return jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape[-2:]))
