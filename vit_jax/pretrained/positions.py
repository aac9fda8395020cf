"""Learned positions at another resolution."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.pretrained.layouts import State


def resample_positions(
    positions: Float[Array | np.ndarray, "1 n d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array | np.ndarray, "1 m d"]:
    """Resample positions of a grid of patches (rows, columns) to another grid, by antialiased bicubic interpolation.

    This is how timm loads weights at another image size (`resample_abs_pos_embed`).
    """
    if old == new:
        return positions
    dim = positions.shape[-1]
    resized = jax.image.resize(positions.reshape(1, *old, dim), (1, *new, dim), "cubic")
    return resized.reshape(1, new[0] * new[1], dim)


def with_positions(state: State, old: tuple[int, int], new: tuple[int, int], notify: Callable[[str], None]) -> State:
    """A state dict with positions "pos_embed" of `old` rows and columns of patches, with those of `new` instead."""
    positions = state.get("pos_embed")
    if positions is None or old == new or positions.shape[1] != math.prod(old):
        return state  # if the number of positions is wrong, conversion says so
    notify(f"positions are resampled from {old[0]} x {old[1]} to {new[0]} x {new[1]} patches")
    return state | {"pos_embed": np.asarray(resample_positions(jnp.asarray(positions, jnp.float32), old, new))}
