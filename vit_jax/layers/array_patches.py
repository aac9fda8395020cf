"""Patches of arrays with any number of axes: images, sequences, volumes and video."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.dense import Dense
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.shapes import Tokens


def per_axis(name: str, value: int | Sequence[int] | None, axes: int) -> tuple[int, ...]:
    """Return the argument `name` as one integer for each of `axes` axes; a single integer applies to all.

    Raises ValueError for another number of values, or values that are not integers.
    """
    sides = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(sides) != axes or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"{name}={value!r}: expected an integer or {axes} of them")
    return sides


def array_grid(name: str, shape: tuple[int, ...], patch_size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of patches along each axis of `shape`, the value of the argument `name`.

    Raises ValueError unless `patch_size` divides `shape`.
    """
    if len(shape) != len(patch_size) or min(*shape, *patch_size) < 1 or any(np.mod(shape, patch_size)):
        raise ValueError(f"{name}={shape}: expected multiples of patch_size={patch_size} along each axis")
    return tuple(np.floor_divide(shape, patch_size).tolist())


def grid_positions(grid: tuple[int, ...]) -> np.ndarray:
    """Return the index of each patch along each axis of a grid, (n, axes); the last axis changes fastest."""
    return np.indices(grid).reshape(len(grid), -1).T


def split_patches(x: Any, patch_size: tuple[int, ...]) -> Any:
    """Split an array (*batch, *shape, c), of numpy or jax, into patches (*batch, n, *patch_size, c).

    `patch_size` must divide `shape`.
    """
    axes, batch = len(patch_size), x.shape[: -1 - len(patch_size)]
    grid = np.floor_divide(x.shape[len(batch) : -1], patch_size).tolist()
    sides = [side for pair in zip(grid, patch_size, strict=True) for side in pair]
    x = x.reshape(*batch, *sides, x.shape[-1])
    across = [len(batch) + 2 * axis for axis in range(axes)]
    x = x.transpose(*range(len(batch)), *across, *(axis + 1 for axis in across), x.ndim - 1)
    return x.reshape(*batch, math.prod(grid), *patch_size, x.shape[-1])


def array_patches(x: Float[Array, "b *shape c"], patch_size: tuple[int, ...]) -> Float[Array, "b n p"]:
    """Split an array into flat patches, in the order of its axes. The features of a patch have channels last.

    Raises ValueError unless `patch_size` divides the array.
    """
    array_grid("image_size", x.shape[1:-1], patch_size)
    return jax.lax.collapse(split_patches(x, patch_size), 2)


class ArrayPatchEmbed(nn.Module):
    """Array (b, *shape, c) to tokens (b, n, dim): a linear layer on each patch, then a norm.

    Raises ValueError unless `patch_size` divides the array.
    """

    patch_size: tuple[int, ...]
    dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "b *shape c"]) -> Tokens:
        return LayerNorm(name="norm")(Dense(self.dim, name="proj")(array_patches(x, self.patch_size)))
