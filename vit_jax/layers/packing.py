"""Images, or volumes, of different sizes in sequences of one length (Patch n' Pack), laid out on the host.

Source: Dehghani et al. 2023, arXiv:2307.06304.
Axes: h, w pixels, c channels, b rows (sequences), n tokens of a row, s images of a row, p features of a patch, a axes
of an image: 2, of a volume 3.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.layers.array_patches import array_grid, grid_positions, split_patches

Rate, Sides = float | Callable[..., float] | None, tuple[int, ...]


class PackedImages(NamedTuple):
    """Rows of patches, several images in each, and what tells the images apart: a model's input of fixed shapes."""

    patches: jax.Array | np.ndarray  # (b, n, p), features in the order (c, *patch); zeros behind the last patch
    positions: jax.Array | np.ndarray  # (b, n, a), frame (of a volume), row and column of the patch in its image
    segment_ids: jax.Array | np.ndarray  # (b, n), which image of its row a patch is of; -1 behind the last patch
    kept: jax.Array | np.ndarray  # (b, s), how many patches of an image token dropout keeps; 0 where there is no image


def pack_images(
    images: Sequence,
    patch_size: Sides,
    *,
    token_dropout_prob: Rate = None,
    rows: int | None = None,
    seq_len: int | None = None,
    max_images: int | None = None,
) -> PackedImages:
    """Images (h, w, c) in `rows` of at most `seq_len` tokens and `max_images` images each, padded to just that.

    A list of images is distributed over rows in its order, or put in one if there is no `seq_len`; a list of lists has
    its rows already. A size that is not given is what these images need. Numpy images give numpy arrays; of traced ones
    the patches are traced, while the layout stays numpy, as it follows from their shapes.
    Raises ValueError when the images need more than a given size, patches do not fill one, or a row has no image.
    """
    if not images:
        raise ValueError("images=[]: expected at least one image")
    if not isinstance(images[0], Sequence):
        lengths = [count_patches(image, patch_size) for image in images]
        images = [images] if seq_len is None else group_images(images, lengths, seq_len, max_images)
    if not all(images):
        raise ValueError(f"images in rows of {[len(row) for row in images]}: expected at least one in each")
    lengths = [sum(count_patches(image, patch_size) for image in row) for row in images]
    rows = _within("rows", len(images), rows)
    seq_len = _within("seq_len", max(lengths), seq_len)
    max_images = _within("max_images", max(map(len, images)), max_images)

    positions = np.zeros((rows, seq_len, len(patch_size)), np.int32)
    segment_ids, kept = np.full((rows, seq_len), -1, np.int32), np.zeros((rows, max_images), np.int32)
    for i, row in enumerate(images):
        start = 0
        for j, image in enumerate(row):
            stop = start + count_patches(image, patch_size)
            positions[i, start:stop] = grid_positions(grid_of(image, patch_size))
            segment_ids[i, start:stop] = j
            kept[i, j] = count_kept(image, patch_size, token_dropout_prob)
            start = stop

    xp = np if all(isinstance(image, np.ndarray) for row in images for image in row) else jnp
    patches = [xp.concatenate([to_patches(image, patch_size) for image in row]) for row in images]
    patches = xp.stack([xp.pad(row, ((0, seq_len - len(row)), (0, 0))) for row in patches])
    return PackedImages(xp.pad(patches, ((0, rows - len(patches)), (0, 0), (0, 0))), positions, segment_ids, kept)


def pack_batch(images, patch_size: Sides, token_dropout_prob: Rate = None) -> PackedImages:
    """A batch (b, h, w, c) with a row for each image."""
    image, batch = one_of_batch(images), images.shape[0]
    positions = grid_positions(grid_of(image, patch_size))
    positions = jnp.broadcast_to(positions[None], (batch, *positions.shape))
    segment_ids = jnp.zeros((batch, positions.shape[1]), jnp.int32)
    kept = jnp.full((batch, 1), count_kept(image, patch_size, token_dropout_prob), jnp.int32)
    return PackedImages(to_patches(images, patch_size), positions, segment_ids, kept)


def one_of_batch(images: jax.Array) -> jax.ShapeDtypeStruct:
    """The shape and type of each image of a batch, which may be empty."""
    return jax.ShapeDtypeStruct(images.shape[1:], images.dtype)


def group_images(
    images: Sequence, lengths: Sequence[int], max_seq_len: int, max_images: int | None = None
) -> list[list]:
    """Images in their order in rows: one that would make a row longer than `max_seq_len` tokens begins the next.

    Raises ValueError for an image of more tokens than that.
    """
    rows, room = [], 0
    for image, length in zip(images, lengths, strict=True):
        if length > max_seq_len:
            raise ValueError(f"image of shape {image.shape}: expected at most {max_seq_len} tokens, not {length}")
        if not rows or length > room or len(rows[-1]) == max_images:
            rows.append([])
            room = max_seq_len
        rows[-1].append(image)
        room -= length
    return rows


def drop_tokens(key: jax.Array, packed: PackedImages, length: int) -> PackedImages:
    """Of each image `packed.kept` patches, a uniform draw without replacement, in rows of `length` tokens."""
    ids = packed.segment_ids
    order = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    order = jax.random.permutation(key, order, axis=1, independent=True)
    before = (ids[:, None, :] == ids[:, :, None]) & (order[:, None, :] < order[:, :, None])
    stays = (before.sum(axis=-1) < jnp.take_along_axis(packed.kept, ids, axis=1)) & (ids >= 0)

    front = jnp.argsort(~stays, axis=1, stable=True)[:, :length]
    patches, positions = (jnp.take_along_axis(x, front[:, :, None], axis=1) for x in (packed.patches, packed.positions))
    ids = jnp.take_along_axis(jnp.where(stays, ids, -1), front, axis=1)
    return PackedImages(patches, positions, ids, packed.kept)


def to_patches(images, patch_size: Sides):
    """Images (..., h, w, c) as patches (..., n, p), row by row."""
    patches = split_patches(images, patch_size)
    *batch, count = patches.shape[: -1 - len(patch_size)]
    pixels, channels = math.prod(patch_size), patches.shape[-1]
    patches = patches.reshape(*batch, count, pixels, channels)
    return patches.swapaxes(-1, -2).reshape(*batch, count, channels * pixels)


def grid_of(image, patch_size: Sides) -> Sides:
    """Patches of an image along each axis. Raises ValueError unless they fill it."""
    return array_grid("image_size", image.shape[:-1], patch_size)


def count_patches(image, patch_size: Sides) -> int:
    """Patches of an image."""
    return math.prod(grid_of(image, patch_size))


def count_kept(image, patch_size: Sides, rate: Rate) -> int:
    """Patches that token dropout leaves of an image; a callable gives the rate for its height and width."""
    rate = rate(*image.shape[:-1]) if callable(rate) else rate or 0.0
    return max(1, int(count_patches(image, patch_size) * (1 - rate)))


def _within(name: str, needed: int, given: int | None) -> int:
    if given is not None and given < needed:
        raise ValueError(f"{name}={given}: expected at least {needed}, as these images need")
    return given or needed
