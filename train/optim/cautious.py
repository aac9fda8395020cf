"""Cautious updates (Liang et al. 2024, arXiv:2411.16085)."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

LEAST_SHARE = 1e-3  # bounds the enlargement, as in the authors' code and in timm


def cautious(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, with zeros where the sign of its update differs from that of the gradient.

    The rest of each array is divided by the share of its elements that agree.
    """

    def update(gradients, state, params=None):
        updates, state = inner.update(gradients, state, params)
        return jax.tree.map(_agreeing, updates, gradients), state

    return optax.GradientTransformation(inner.init, update)


def _agreeing(update: Array, gradient: Array) -> Array:
    agrees = (update * gradient > 0).astype(update.dtype)
    return update * agrees / jnp.maximum(agrees.mean(), LEAST_SHARE)
