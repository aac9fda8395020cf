"""Masks that are causal along some axes of a grid: in video a patch reads its own frame and those before it.

Upstream: vit_pytorch/vit_nd_masking.py, whose mask functions are for torch's flex attention; its attention is `attend`.
Axes: b batch, n patches, a axes of the grid, i query, j key.
"""

from collections.abc import Sequence

import numpy as np


def causal_mask(positions, axes: Sequence[int]):
    """Which keys each query reads, bool (*b, i, j): those that are ahead of it along none of `axes`.

    `positions`, (*b, n, a), are the places of the patches on the grid, a numpy array or one that is traced.
    """
    along = positions[..., np.asarray(axes, int)]
    return (along[..., :, None, :] >= along[..., None, :, :]).all(axis=-1)


def causal_axes(causal_dims: int | Sequence[int] | None, ndim: int) -> tuple[int, ...] | None:
    """The argument `causal_dims` as a tuple of axes, if it is given. Raises ValueError for one that there is not."""
    if causal_dims is None:
        return None
    axes = tuple(causal_dims) if isinstance(causal_dims, Sequence) else (causal_dims,)
    if not all(isinstance(axis, int) and 0 <= axis < ndim for axis in axes):
        raise ValueError(f"causal_dims={causal_dims!r}: expected axes, each from 0 to {ndim - 1}, as ndim={ndim}")
    return axes
