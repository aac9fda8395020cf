"""torch's pools where Flax has none, as torchvision's networks need them."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from vit_jax.layers.shapes import Maps


def adaptive_avg_pool(x: Maps, size: int) -> Float[Array, "b u u d"]:
    """Means over `size` x `size` regions that cover a map of any sides, as nn.AdaptiveAvgPool2d has them.

    Region i of n pixels is from i n / size, rounded down, to (i + 1) n / size, rounded up: regions may overlap, and
    repeat pixels where n is smaller than `size`.
    Raises ValueError for a map without pixels, which is what strides leave of a small image.
    """
    if 0 in x.shape[1:3]:
        raise ValueError(f"map of shape {x.shape}: expected pixels, the images are too small")
    for axis in (1, 2):
        n = x.shape[axis]
        regions = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        means = [lax.slice_in_dim(x, start, stop, axis=axis).mean(axis) for start, stop in regions]
        x = jnp.stack(means, axis)
    return x


def max_pool_ceil(x: Maps, kernel: int, stride: int) -> Float[Array, "b u v d"]:
    """nn.MaxPool2d(kernel, stride, ceil_mode=True), with `stride` up to `kernel`: the last windows may be cut off."""
    missing = [-(n - kernel) % stride for n in x.shape[1:3]]
    return nn.max_pool(x, (kernel, kernel), (stride, stride), [(0, n) for n in missing])
