"""Golden Gate RoPE: rotary angles for grids with any number of axes, where each feature has its own direction.

Source: Jerry Xiong, "Golden Gate RoPE", jerryxio.ng/posts/nd-rope. Upstream: `make_directions` and the module after it
in vit_pytorch/vit_nd_rotary.py.
Axes: h heads, n patches, f features of a head, a axes of the grid.
"""

import statistics

import numpy as np

from vit_jax.layers.array_patches import grid_positions


def directions(count: int, axes: int) -> np.ndarray:
    """Unit vectors spread evenly over the sphere, float32 (count, axes).

    They are the normal quantiles of a Kronecker sequence, normalised.
    """
    golden = 2.0
    for _ in range(10):  # converges to the root of g**(axes + 1) == g + 1; for one axis the golden ratio
        golden = (1 + golden) ** (1 / (axes + 1))
    points = np.arange(1, count + 1)[:, None] * golden ** -np.arange(1.0, axes + 1) % 1.0
    normal = np.vectorize(statistics.NormalDist().inv_cdf)(points)
    return (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(np.float32)


def frequencies(
    heads: int, features: int, axes: int, min_freq: float, max_freq: float, zero_share: float
) -> np.ndarray:
    """Radians per patch along each axis, float32 (h, f, a).

    The length of these vectors rises geometrically from `min_freq` to `max_freq` over the features of a head. The first
    `zero_share` of the features have frequency zero. Values are rounded where torch rounds, because at 10,000 radians
    per patch the last digit of a frequency changes the angle by a thousandth.
    """
    zeros = round(zero_share * features)
    rising = _unit_steps(features - zeros)
    powers = np.power(np.float64(np.float32(max_freq / min_freq)), rising).astype(np.float32)
    lengths = np.concatenate([np.zeros(zeros, np.float32), np.float32(min_freq) * powers])
    return directions(heads * features, axes).reshape(heads, features, axes) * lengths[None, :, None]


def angles(frequencies: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """The angle of each feature at each patch of `grid`, float32 (h, n, f)."""
    along = zip(grid_positions(grid).astype(np.float32).T, np.moveaxis(frequencies, -1, 0), strict=True)
    return sum(place[None, :, None] * radians[:, None] for place, radians in along)


def sin_cos(angles: np.ndarray) -> np.ndarray:
    """Sine and cosine, float32 (2, h, n, f), computed in float64 so that they are exact for large angles."""
    wide = angles.astype(np.float64)
    return np.stack([np.sin(wide), np.cos(wide)]).astype(np.float32)


def _unit_steps(count: int) -> np.ndarray:
    """`count` values from 0 to 1, computed from both ends to the middle and rounded once, like torch's linspace."""
    i, step = np.arange(count), np.float64(np.float32(1 / max(count - 1, 1)))
    return np.where(i < max(count // 2, 1), step * i, 1 - step * i[::-1]).astype(np.float32)
