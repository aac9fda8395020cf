"""A dataset ready to train on: opened, measured, and in memory if it is small."""

import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress

from train.commandline.ranges import check_values
from train.config import Data
from train.data.fingerprint import Fingerprint
from train.data.folder import open_folder, open_images
from train.data.skipped import Skipped
from train.data.sources import ArraySource, Source, open_digits, read
from train.data.tfds import open_tfds
from train.data.transforms import center_crop
from train.errors import UserError
from train.memory import host_memory, in_words
from vit_jax.printable import printable

SAMPLE = 1000  # images on which sizes, means and deviations are measured
MEMORY = 2**30  # bytes up to which a split is decoded once and kept


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Two splits and what a model must know about them.

    `image_shape` is (height, width, channels) as the model sees it, `mean` and `std` are per channel, of
    pixels in 0..1, and `notes` are for the user to read at the start of a run. `fingerprints` are those of "train" and
    "eval". If labels are not needed, they may all be 0, and there may be no `class_names`.
    """

    train: Source
    eval: Source
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]
    fingerprints: Mapping[str, Fingerprint] = dataclasses.field(default_factory=dict)


def load_dataset(config: Data, *, labels: bool = True) -> Dataset:
    """Open `config.name`, and decode it at once if it is small.

    Args:
        config: Which data, and how its images are cropped.
        labels: Whether the labels are needed. Without them a folder of images needs no folders of classes.

    Raises:
        UserError: A mistake in `config` or in the data.
    """
    check_values(config, "data.")
    _check_image_size(config)
    kind, _, rest = config.name.partition(":")
    if config.name == "digits":
        parts = open_digits(config)
    elif kind == "folder" and rest:
        parts = (open_folder if labels else open_images)(Path(rest).expanduser(), config)
    elif kind == "tfds" and rest:
        parts = open_tfds(rest, config, labels=labels)
    else:
        raise UserError(f"unknown data {config.name!r}: expected digits, tfds:NAME or folder:PATH")
    train, evaluation, class_names, notes, fingerprints = parts
    if labels and len(class_names) < 2:
        raise UserError(f"{config.name} has a single class, {class_names[0]!r}: expected two or more")

    image_shape = _image_shape(train, config)
    train = _into_memory(train, image_shape, "training")
    evaluation = _into_memory(evaluation, image_shape, "evaluation")
    mean, std = _statistics(train, image_shape, config)
    return Dataset(train, evaluation, class_names, image_shape, mean, std, notes, fingerprints)


def _check_image_size(config: Data) -> None:
    """Raises UserError for a size whose images would take more memory than there is."""
    if config.image_size is None:
        return
    measured = config.mean is None or config.std is None
    bytes_per_value = 20 if measured else 4  # an image and its resized copy, and the squares of the latter in float64
    need = math.prod(config.image_size) * 3 * bytes_per_value * os.cpu_count()
    if need > host_memory():
        raise UserError(
            f"--data.image-size is {config.image_size}: {os.cpu_count()} threads that decode such images need "
            f"{in_words(need)}, but there are only {in_words(host_memory())} of memory"
        )


def _image_shape(source: Source, config: Data) -> tuple[int, int, int]:
    """Height, width and channels that the model sees."""
    first = read(source, 0)[0].shape
    if config.image_size is not None:
        return (*config.image_size, first[2])
    for shape in _each(lambda i: read(source, i)[0].shape, _sample(source), "Comparing image sizes", source):
        if shape != first:
            sizes = f"{first[0]}x{first[1]} and {shape[0]}x{shape[1]}"
            raise UserError(f"images of {config.name} differ in size ({sizes}): pass --data.image-size H W")
    return first


def _statistics(source: Source, shape: tuple[int, int, int], config: Data) -> tuple[tuple[float, ...], ...]:
    """Mean and standard deviation per channel, as configured or else measured."""
    for name, given in (("mean", config.mean), ("std", config.std)):
        if given is not None and len(given) != shape[2]:
            raise UserError(f"data.{name} has {len(given)} values: expected {shape[2]}, one per channel")
    if config.mean is not None and config.std is not None:
        return config.mean, config.std

    def moments(index: int) -> np.ndarray:
        pixels = center_crop(read(source, index)[0], shape[:2], config.eval_crop) / 255
        return np.stack([pixels.mean((0, 1)), (pixels**2).mean((0, 1))])

    measured = _each(moments, _sample(source), "Measuring mean and deviation", source)
    mean, square = np.mean(list(measured), axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 1 / 255**2))  # a constant channel must not divide by zero
    return config.mean or tuple(mean.tolist()), config.std or tuple(std.tolist())


def _into_memory(source: Source, shape: tuple[int, int, int], what: str) -> Source:
    """The source decoded once, if that is small and all its images have `shape`; else the source itself.

    Others stand in for training images that cannot be read; of evaluation images those are left out.
    """
    size = len(source)
    if isinstance(source, ArraySource) or size * math.prod(shape) > MEMORY or read(source, 0)[0].shape != shape:
        return source
    images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int32)
    used = np.empty(size, np.int64)

    def fetch(index: int) -> bool:
        image, labels[index], used[index] = read(source, index)
        if image.shape != shape:
            return False
        images[index] = image
        return True

    if not all(_each(fetch, range(size), f"Decoding {size:,} {what} images", source)):
        return source
    unreadable = used != np.arange(size)
    Skipped(source, what, warn).add(np.flatnonzero(unreadable).tolist())
    kept = slice(None) if what == "training" else ~unreadable
    return ArraySource(images[kept], labels[kept])


def warn(line: str) -> None:
    """Shows a line to the user."""
    print(printable(line, None), file=sys.stderr)


def _sample(source: Source) -> Sequence[int]:
    """Up to SAMPLE evenly spaced indices."""
    count = min(len(source), SAMPLE)
    return [i * len(source) // count for i in range(count)]


def _each(function: Callable[[int], Any], indices: Sequence[int], description: str, source: Source) -> Iterator:
    """`function` of every index in order, with threads and a progress bar if the source must decode."""
    if isinstance(source, ArraySource):
        yield from map(function, indices)
        return
    # A future for each small image would cost as much as decoding it.
    chunks = [indices[i : i + 16] for i in range(0, len(indices), 16)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda chunk: [function(i) for i in chunk], chunks)
        flat = itertools.chain.from_iterable(results)
        yield from rich.progress.track(flat, description, total=len(indices))
