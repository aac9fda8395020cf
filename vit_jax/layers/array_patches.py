"""Patches of an array with any number of axes: images, sequences, volumes, video."""

import math

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.dense import Dense
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.shapes import Tokens


def array_grid(name: str, shape: tuple[int, ...], patch_size: tuple[int, ...]) -> tuple[int, ...]:
    """Number of patches along each axis of `shape`, the argument `name`. Raises ValueError unless they fill it."""
    if min(*shape, *patch_size) < 1 or any(np.mod(shape, patch_size)):
        raise ValueError(f"{name}={shape}: expected multiples of patch_size={patch_size}, side by side")
    return tuple(np.floor_divide(shape, patch_size).tolist())


def array_patches(x: Float[Array, "b *shape c"], patch_size: tuple[int, ...]) -> Float[Array, "b n p"]:
    """Patches in the order of their axes; so are the features of each, channels last. Raises as `array_grid`."""
    grid = array_grid("image_size", x.shape[1:-1], patch_size)
    sides = [side for pair in zip(grid, patch_size, strict=True) for side in pair]
    x = x.reshape(len(x), *sides, x.shape[-1])
    x = x.transpose(0, *range(1, x.ndim - 1, 2), *range(2, x.ndim - 1, 2), x.ndim - 1)
    return x.reshape(len(x), math.prod(grid), -1)


class ArrayPatchEmbed(nn.Module):
    """Array (b, *shape, c) to tokens (b, n, dim), projected and normalised. Raises as `array_grid`."""

    patch_size: tuple[int, ...]
    dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "b *shape c"]) -> Tokens:
        return LayerNorm(name="norm")(Dense(self.dim, name="proj")(array_patches(x, self.patch_size)))
