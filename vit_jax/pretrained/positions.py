"""Learned positions at another resolution."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.pretrained.layouts import State

RESAMPLED = "positions are resampled"  # in the notice about it


def resample_positions(
    positions: Float[Array | np.ndarray, "1 n d"],
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    antialias: bool = True,
) -> Float[Array | np.ndarray, "1 m d"]:
    """Resample positions of a grid of patches (rows, columns) to another grid, by bicubic interpolation.

    With `antialias` it is how timm loads weights at another image size (`resample_abs_pos_embed`), without it how
    transformers interpolates them. The results differ even where the grid grows, because the coefficients of the cubic
    kernels are -0.5 and -0.75.
    """
    if old == new:
        return positions
    dim = positions.shape[-1]
    grid = positions.reshape(1, *old, dim)
    if antialias:
        resized = jax.image.resize(grid, (1, *new, dim), "cubic")
    else:
        rows, columns = (cubic_weights(*sides).astype(positions.dtype) for sides in zip(old, new, strict=True))
        resized = jnp.einsum("ih,jw,bhwd->bijd", rows, columns, grid, precision="highest")
    return resized.reshape(1, new[0] * new[1], dim)


def with_positions(
    state: State,
    old: tuple[int, int],
    new: tuple[int, int],
    notify: Callable[[str], None],
    *,
    antialias: bool = True,
) -> State:
    """A state dict with positions "pos_embed" of `old` rows and columns of patches, with those of `new` instead."""
    positions = state.get("pos_embed")
    if old == new or np.ndim(positions) != 3 or positions.shape[:2] != (1, math.prod(old)):
        return state  # if the shape of positions is wrong, conversion says so
    notify(f"{RESAMPLED} from {old[0]} x {old[1]} to {new[0]} x {new[1]} patches")
    positions = jnp.asarray(positions, jnp.float32)
    return state | {"pos_embed": np.asarray(resample_positions(positions, old, new, antialias=antialias))}


def cubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Weights of `old` samples in each of `new` ones, as torch interpolates without antialiasing.

    The kernel is Keys's cubic with the coefficient -0.75 (Keys 1981). Samples beyond an edge are those at the edge.
    """
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((new, old))
    for samples in (first + tap for tap in range(4)):
        np.add.at(weights, (np.arange(new), samples.clip(0, old - 1)), _keys(np.abs(centres - samples)))
    return weights


def _keys(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
