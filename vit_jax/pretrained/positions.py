"""Learned positions at another resolution."""

import jax
import numpy as np
from jaxtyping import Array, Float


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
