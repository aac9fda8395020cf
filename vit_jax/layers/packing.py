"""Pack images, or volumes, of different sizes into sequences of one length (Patch n' Pack), on the host.

Source: Dehghani et al. 2023, arXiv:2307.06304.
Axes: h, w pixels, c channels, b rows (sequences), n tokens of a row, s images of a row, p features of a patch, a axes
(2 of an image, 3 of a volume).
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
    """Rows with the patches of several images each: the input of a model, of fixed shapes."""

    patches: jax.Array | np.ndarray  # (b, n, p), features in the order (c, *patch); padded with zeros
    positions: jax.Array | np.ndarray  # (b, n, a), row and column of the patch in its image; of a volume, frame first
    segment_ids: jax.Array | np.ndarray  # (b, n), index of the patch's image in the row; -1 for padding
    kept: jax.Array | np.ndarray  # (b, s), number of patches of each image that token dropout keeps; 0 for no image


def pack_images(
    images: Sequence,
    patch_size: Sides,
    *,
    token_dropout_prob: Rate = None,
    rows: int | None = None,
    seq_len: int | None = None,
    max_images: int | None = None,
) -> PackedImages:
    """Pack images (h, w, c) into rows of tokens, padded to fixed shapes.

    Patches are numpy if all images are numpy, else jax. The other fields are numpy, since they depend only on shapes.

    Args:
        images: a list of images, distributed over rows in order (without `seq_len`, one row); or a list of rows, each a
            list of images.
        patch_size: sides of a patch.
        token_dropout_prob: share of the patches to drop, or a function of an image's sides that returns it.
        rows: number of rows; None for as many as needed.
        seq_len: tokens of a row; None for the longest row.
        max_images: most images in a row; None for as many as needed.

    Raises:
        ValueError: if the images need more than a given size, `patch_size` does not divide an image, or a row is empty.
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
    """Pack a batch (b, h, w, c) with one image in each row."""
    image, batch = one_of_batch(images), images.shape[0]
    positions = grid_positions(grid_of(image, patch_size))
    positions = jnp.broadcast_to(positions[None], (batch, *positions.shape))
    segment_ids = jnp.zeros((batch, positions.shape[1]), jnp.int32)
    kept = jnp.full((batch, 1), count_kept(image, patch_size, token_dropout_prob), jnp.int32)
    return PackedImages(to_patches(images, patch_size), positions, segment_ids, kept)


def one_of_batch(images: jax.Array) -> jax.ShapeDtypeStruct:
    """The shape and dtype of one image of a batch. The batch may be empty."""
    return jax.ShapeDtypeStruct(images.shape[1:], images.dtype)


def group_images(
    images: Sequence, lengths: Sequence[int], max_seq_len: int, max_images: int | None = None
) -> list[list]:
    """Distribute images over rows, in order. An image that does not fit into the current row begins the next.

    Args:
        images: the images.
        lengths: number of tokens of each image.
        max_seq_len: most tokens in a row.
        max_images: most images in a row, or None for no limit.

    Raises:
        ValueError: for an image with more than `max_seq_len` tokens.
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
    """Keep `packed.kept` patches of each image, drawn without replacement, in rows of `length` tokens."""
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
    """Split images (..., h, w, c) into patches (..., n, p), row by row."""
    patches = split_patches(images, patch_size)
    *batch, count = patches.shape[: -1 - len(patch_size)]
    pixels, channels = math.prod(patch_size), patches.shape[-1]
    patches = patches.reshape(*batch, count, pixels, channels)
    return patches.swapaxes(-1, -2).reshape(*batch, count, channels * pixels)


def grid_of(image, patch_size: Sides) -> Sides:
    """Number of patches along each axis of an image. Raises ValueError unless `patch_size` divides the image."""
    return array_grid("image_size", image.shape[:-1], patch_size)


def count_patches(image, patch_size: Sides) -> int:
    """Number of patches of an image."""
    return math.prod(grid_of(image, patch_size))


def count_kept(image, patch_size: Sides, rate: Rate) -> int:
    """Number of patches that token dropout keeps of an image. A callable `rate` is called with the image's sides."""
    rate = rate(*image.shape[:-1]) if callable(rate) else rate or 0.0
    return max(1, int(count_patches(image, patch_size) * (1 - rate)))


def _within(name: str, needed: int, given: int | None) -> int:
    if given is not None and given < needed:
        raise ValueError(f"{name}={given}: expected at least {needed}, as these images need")
    return given or needed
