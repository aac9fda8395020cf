"""Training images that are kept on the devices: every step then transfers only their indices."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from train.cluster.processes import on_lead
from train.config import Data
from train.data.dataset import Dataset
from train.data.pipeline import need_no_crop
from train.errors import UserError
from train.memory import device_memory, in_words
from train.sharding import replicated

SHARE = 1 / 16  # of a device's memory


def kept_on_devices(dataset: Dataset, config: Data, mesh: Mesh) -> bool:
    """Whether the training images are kept on the devices; all processes get the same answer.

    Raises UserError if `config` demands it and they cannot be.
    """
    if config.placement == "devices" and not need_no_crop(dataset, config):
        raise UserError(
            "--data.placement=devices needs training images in memory (digits, an .npz file, or up to 1 GiB of images "
            "of one size) that are neither cropped nor resized: --data.min-crop must be 1, --data.random-crop resized, "
            "and --data.image-size that of the images"
        )
    if config.placement != "auto":
        return config.placement == "devices"
    if not need_no_crop(dataset, config):
        return False
    platform, size = mesh.devices.flat[0].platform, dataset.train.images.nbytes
    return on_lead(lambda: are_small(platform, size, device_memory(mesh)[0]))


def are_small(platform: str, size: int, memory: int | float) -> bool:
    """Whether `auto` keeps images of `size` bytes on devices with `memory` bytes, infinite if it is not known.

    A CPU's memory is that of the host, so nothing would be gained.
    """
    return platform != "cpu" and math.isfinite(memory) and size <= SHARE * memory


def note_on_placement(dataset: Dataset) -> str:
    """A line about training images that are kept on the devices."""
    return f"training images are kept on the devices, {in_words(dataset.train.images.nbytes)} on each"


def on_every_device(images: np.ndarray, mesh: Mesh) -> jax.Array:
    """All images (n, ...) as rows (n, pixels), on every device of all processes, each of which has them all.

    A TPU stores the last two axes in tiles. It would store images with few channels with n last, and copy them all to
    gather some.
    """
    return jax.make_array_from_process_local_data(replicated(mesh), images.reshape(len(images), -1))


def with_images(
    batch: dict[str, jax.Array], rows: jax.Array | None, image_shape: tuple[int, ...]
) -> dict[str, jax.Array]:
    """`batch`, with "image" in place of "index" if the images are on the devices, as `rows` of `on_every_device`."""
    if rows is None:
        return batch
    index = batch["index"]
    others = {name: values for name, values in batch.items() if name != "index"}
    return {"image": _gather(index.sharding, image_shape)(rows, index), **others}


@functools.cache
def _gather(sharding: NamedSharding, image_shape: tuple[int, ...]) -> Callable:
    """The jitted function from all images as rows and some indices to the images at these, with a `sharding`."""
    return jax.jit(lambda rows, index: rows[index].reshape(-1, *image_shape), out_shardings=sharding)
