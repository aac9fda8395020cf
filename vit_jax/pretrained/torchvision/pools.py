"""Pooling functions of torch that Flax lacks."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vit_jax.layers.max_pool import max_pool
from vit_jax.layers.shapes import Maps


def adaptive_avg_pool(x: Maps, size: int) -> Float[Array, "b u u d"]:
    """Return the means over `size` x `size` regions that cover a map of any size, as torch's nn.AdaptiveAvgPool2d.

    Along an axis of n pixels, region i extends from i n / size, rounded down, to (i + 1) n / size, rounded up. Regions
    may overlap, and repeat pixels if n is less than `size`. Raises ValueError for a map without pixels, which strides
    make of an image that is too small.
    """
    if 0 in x.shape[1:3]:
        raise ValueError(f"map of shape {x.shape}: expected at least one pixel; the images are too small")
    for axis in (1, 2):
        n = x.shape[axis]
        regions = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        means = [lax.slice_in_dim(x, start, stop, axis=axis).mean(axis) for start, stop in regions]
        x = jnp.stack(means, axis)
    return x


def max_pool_ceil(x: Maps, kernel: int, stride: int) -> Float[Array, "b u v d"]:
    """Apply torch's nn.MaxPool2d(kernel, stride, ceil_mode=True): the last windows may reach over the edge.

    `stride` may be at most `kernel`.
    """
    missing = [-(n - kernel) % stride for n in x.shape[1:3]]
    return max_pool(x, (kernel, kernel), (stride, stride), [(0, n) for n in missing])
