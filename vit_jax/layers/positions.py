"""Positions that are computed, and offsets that positions learned for them go by."""

import numpy as np


def sincos_2d(rows: int, columns: int, dim: int, temperature: float = 10000.0) -> np.ndarray:
    """Sines and cosines of x, then of y, over a grid of patches: float32 (rows * columns, dim).

    Source: Beyer et al. 2022, arXiv:2205.01580. Raises ValueError unless `dim` is a multiple of 4 above 4.
    """
    if dim % 4 or dim <= 4:
        raise ValueError(f"dim={dim}: expected a multiple of 4, and more than 4, for sine-cosine positions")
    y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1)
    frequencies = temperature ** -(np.arange(dim // 4) / (dim // 4 - 1))
    x, y = x * frequencies, y * frequencies
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


def sincos_1d(count: int, dim: int) -> np.ndarray:
    """Positions in a sequence, sine and cosine by turns (arXiv:1706.03762): float32 (count, dim)."""
    feature = np.arange(dim)
    angles = np.arange(count)[:, None] / 10000 ** (2 * (feature // 2) / dim)
    return np.where(feature % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def relative_positions(window: int) -> np.ndarray:
    """For each pair of pixels of a square window the number of their offset: (n, n), below (2 window - 1)**2."""
    row, column = np.mgrid[:window, :window].reshape(2, -1)
    offset = lambda along: along[:, None] - along[None] + window - 1
    return offset(row) * (2 * window - 1) + offset(column)
