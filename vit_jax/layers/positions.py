"""Sine-cosine positions, and indices for learned relative positions."""

import numpy as np


def sincos_grid(grid: tuple[int, ...], dim: int, temperature: float = 10000.0) -> np.ndarray:
    """Return sines and cosines of the last axis, then of the axis before it, and so on, float32 (patches, dim).

    All axes have the same number of frequencies, so the last features may be left over; they are zero. Raises
    ValueError if `dim` allows fewer than two frequencies for each axis.
    """
    count = dim // (2 * len(grid))
    if count < 2:
        raise ValueError(f"dim={dim}: expected at least {4 * len(grid)}, for sine-cosine positions")
    frequencies = temperature ** -(np.arange(count) / (count - 1))
    places = np.indices(grid).reshape(len(grid), -1, 1)[::-1] * frequencies
    waves = [wave(along) for along in places for wave in (np.sin, np.cos)]
    return np.pad(np.concatenate(waves, axis=1), ((0, 0), (0, dim - 2 * len(grid) * count))).astype(np.float32)


def sincos_2d(rows: int, columns: int, dim: int, temperature: float = 10000.0) -> np.ndarray:
    """Return sines and cosines of x, then of y, over a grid of patches: float32 (rows * columns, dim).

    Source: Beyer et al. 2022, arXiv:2205.01580. Raises ValueError unless `dim` is a multiple of 4 above 4.
    """
    if dim % 4 or dim <= 4:
        raise ValueError(f"dim={dim}: expected a multiple of 4, and more than 4, for sine-cosine positions")
    return sincos_grid((rows, columns), dim, temperature)


def sincos_1d(count: int, dim: int) -> np.ndarray:
    """Return positions in a sequence, sines and cosines in turn (arXiv:1706.03762): float32 (count, dim).

    As upstream, angles are rounded to float32. Near n, this changes an angle, and its sine, by up to n * 6e-8.
    """
    angles = (np.arange(count)[:, None] / 10000 ** (np.arange(0, dim, 2) / dim)).astype(np.float32).astype(np.float64)
    table = np.empty((count, dim), np.float32)
    table[:, ::2], table[:, 1::2] = np.sin(angles), np.cos(angles[:, : dim // 2])
    return table


def relative_positions(window: int) -> np.ndarray:
    """Return the index of the offset between each two pixels of a square window, (n, n), below (2 window - 1)**2."""
    row, column = np.mgrid[:window, :window].reshape(2, -1)
    offset = lambda along: along[:, None] - along[None] + window - 1
    return offset(row) * (2 * window - 1) + offset(column)
