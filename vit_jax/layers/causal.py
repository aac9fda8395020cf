"""Attention masks that are causal along some axes of a grid: for video, a patch attends to its frame and earlier ones.

Upstream: vit_pytorch/vit_nd_masking.py. Its mask functions are for torch's flex attention; here masks are arrays for
`attend`.
Axes: b batch, n patches, a axes of the grid, i query, j key.
"""

from collections.abc import Sequence

import numpy as np


def causal_mask(positions, axes: Sequence[int]):
    """Return a mask, bool (*b, i, j): a query attends to the keys that are not ahead of it along any of `axes`.

    Args:
        positions (Array): index of each patch along each axis, (*b, n, a), in numpy or jax.
        axes: the causal axes.
    """
    along = positions[..., np.asarray(axes, int)]
    return (along[..., :, None, :] >= along[..., None, :, :]).all(axis=-1)


def causal_axes(causal_dims: int | Sequence[int] | None, ndim: int) -> tuple[int, ...] | None:
    """Return the argument `causal_dims` as a tuple of axes, or None. Raises ValueError for an axis outside the grid."""
    if causal_dims is None:
        return None
    axes = tuple(causal_dims) if isinstance(causal_dims, Sequence) else (causal_dims,)
    if not all(isinstance(axis, int) and 0 <= axis < ndim for axis in axes):
        raise ValueError(f"causal_dims={causal_dims!r}: expected axes, each from 0 to {ndim - 1}, as ndim={ndim}")
    return axes
