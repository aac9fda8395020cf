"""Training images that stay on the devices: every step then sends only their indices."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from train.config import Data
from train.data.dataset import Dataset
from train.data.pipeline import are_ready
from train.errors import UserError
from train.memory import device_memory, in_words
from train.sharding import replicated

SHARE = 1 / 16  # of a device's memory: so little that the checks of a step's memory need not count it


def stay_on_devices(dataset: Dataset, config: Data, mesh: Mesh) -> bool:
    """Whether the training images stay on the devices. Raises UserError if `config` demands it and they cannot."""
    if config.placement == "devices" and not are_ready(dataset, config):
        raise UserError(
            "--data.placement is devices: expected training images in memory (digits, an .npz file, or up to 1 GiB of "
            "images of one size), without --data.min-crop, --data.random-crop=simple or another --data.image-size"
        )
    if config.placement != "auto":
        return config.placement == "devices"
    memory, _ = device_memory(mesh)
    return are_ready(dataset, config) and fit(mesh.devices.flat[0].platform, dataset.train.images.nbytes, memory)


def fit(platform: str, size: int, memory: int | float) -> bool:
    """Whether `auto` keeps images of `size` bytes on devices with `memory` bytes, infinite if it is not known.

    A CPU's memory is that of the host, so nothing would be gained.
    """
    return platform != "cpu" and size <= SHARE * memory < np.inf


def notes_on_placement(dataset: Dataset) -> tuple[str, ...]:
    """A line about training images that stay on the devices."""
    return (f"training images stay on the devices, {in_words(dataset.train.images.nbytes)} on each",)


def on_every_device(images: np.ndarray, mesh: Mesh) -> jax.Array:
    """All images, on every device of all processes, each of which has them all."""
    return jax.make_array_from_process_local_data(replicated(mesh), images)


def with_images(batch: dict[str, jax.Array], images: jax.Array | None) -> dict[str, jax.Array]:
    """`batch`, with "image" in place of "index" if the images stay on the devices."""
    if images is None:
        return batch
    index = batch["index"]
    others = {name: rows for name, rows in batch.items() if name != "index"}
    return {"image": _gather(index.sharding)(images, index), **others}


@functools.cache
def _gather(sharding: NamedSharding) -> Callable:
    """The jitted function from all images and some indices to the images at these, with a `sharding`."""
    return jax.jit(lambda images, index: images[index], out_shardings=sharding)
