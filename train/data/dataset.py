"""Open a dataset, measure its means and deviations, and decode it into memory if it is small."""

import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import rich.progress

from train.commandline.ranges import check_values
from train.config import Data
from train.data.fingerprint import Fingerprint
from train.data.skipped import Skipped
from train.data.sources import ArraySource, Source, as_array, evenly_spaced, read
from train.data.transforms import evaluation_crop, evaluation_of
from train.data_kinds import check_normalisation, parse_kind
from train.errors import UserError
from train.memory import host_memory, in_words
from vit_jax.images import WHITE, Pixels
from vit_jax.printable import counted, printable

SAMPLE = 1000  # images used to compare sizes, and to measure means and deviations
MEMORY = 2**30  # bytes of the largest split that is decoded into memory


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A training and an evaluation split, and their properties.

    Attributes:
        train: Training images and labels. If labels are not needed, they may all be 0.
        eval: Evaluation images and labels.
        class_names: Names of the classes, labels, or columns of numbers; may be empty if they are not needed.
        image_shape: Height, width and channels of the model's input.
        mean: Mean per channel, of pixels in 0..1; floats may have any range.
        std: Standard deviation per channel, of the same pixels.
        notes: Lines about the data, shown at the start of a run.
        fingerprints: Fingerprints of "train" and "eval".
        pixels: Type of the samples of images.
    """

    train: Source
    eval: Source
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]
    fingerprints: Mapping[str, Fingerprint] = dataclasses.field(default_factory=dict)
    pixels: Pixels = "uint8"


def load_dataset(config: Data, *, labels: bool = True, trains: bool = True) -> Dataset:
    """Open the dataset `config.name`, and decode it into memory if it is small.

    Args:
        config: The dataset and its preprocessing.
        labels: Whether labels are needed. Otherwise a folder of images need not have a folder for each class.
        trains: Whether the training images are all needed. Otherwise they are not decoded into memory.

    Raises:
        UserError: If `config` is invalid, or the data cannot be used.
    """
    check_values(config, "data.")
    check_normalisation(config)
    _check_image_size(config)
    kind, rest = parse_kind(config.name)
    parts = kind.load_opener()(rest, config, labels=labels)
    train, evaluation, class_names, notes, fingerprints = parts
    if labels and config.target == "class" and len(class_names) < 2:
        raise UserError(f"{config.name} has a single class, {class_names[0]!r}: expected two or more")

    image_shape, pixels = _image_shape(train, config), read(train, 0)[0].dtype
    train = _into_memory(train, image_shape, "training") if trains else train
    evaluation = _into_memory(evaluation, image_shape, "evaluation")
    mean, std = _statistics(train, image_shape, config)
    return Dataset(train, evaluation, class_names, image_shape, mean, std, notes, fingerprints, pixels.name)


def _check_image_size(config: Data) -> None:
    """Raises UserError for an image size that needs more memory than there is."""
    if config.image_size is None:
        return
    measured = config.mean is None or config.std is None
    bytes_per_value = 20 if measured else 4  # an image, its resized copy, and the copy's squares in float64
    need = math.prod(config.image_size) * (config.channels or 3) * bytes_per_value * os.cpu_count()
    if need > host_memory():
        raise UserError(
            f"--data.image-size is {config.image_size}: decoding images of this size in {os.cpu_count()} threads "
            f"needs {in_words(need)}, but there are only {in_words(host_memory())} of memory"
        )


def _image_shape(source: Source, config: Data) -> tuple[int, int, int]:
    """Height, width and channels of the model's input."""
    first = read(source, 0)[0].shape
    if config.image_size is not None:
        return (*config.image_size, first[2])
    sample = evenly_spaced(len(source), SAMPLE)
    for shape in _each(lambda i: read(source, i)[0].shape, sample, "Comparing image sizes", source):
        if shape != first:
            sizes = f"{first[0]}x{first[1]} and {shape[0]}x{shape[1]}"
            raise UserError(f"images of {config.name} differ in size ({sizes}): pass --data.image-size H W")
    return first


def _statistics(source: Source, shape: tuple[int, int, int], config: Data) -> tuple[tuple[float, ...], ...]:
    """Mean and standard deviation per channel: those of `config`, otherwise measured."""
    for name, given in (("mean", config.mean), ("std", config.std)):
        if given is not None and len(given) != shape[2]:
            raise UserError(f"data.{name} has {counted(len(given), 'value')}: expected {shape[2]}, one per channel")
    if config.mean is not None and config.std is not None:
        return config.mean, config.std

    grey = (0.5,) * shape[2]  # of borders
    preprocessing = evaluation_of(config, shape, grey)
    white = WHITE[read(source, 0)[0].dtype.name]

    def moments(index: int) -> np.ndarray:
        pixels = evaluation_crop(read(source, index)[0], preprocessing, grey).astype(np.float64) / white
        return np.stack([pixels.mean((0, 1)), (pixels**2).mean((0, 1))])

    measured = _each(moments, evenly_spaced(len(source), SAMPLE), "Measuring mean and deviation", source)
    mean, square = np.mean(list(measured), axis=0)
    least = 1 / max(white, 255)  # avoids division by zero for a constant channel
    std = np.sqrt(np.maximum(square - mean**2, least**2))
    return config.mean or tuple(mean.tolist()), config.std or tuple(std.tolist())


def _into_memory(source: Source, shape: tuple[int, int, int], what: str) -> Source:
    """Decode a source into memory if it is small and all its images have `shape`; otherwise return it unchanged.

    An unreadable training image is replaced by another; an unreadable evaluation image is left out.
    """
    size, first = len(source), read(source, 0)[0]
    if isinstance(source, ArraySource) or size * math.prod(shape) * first.itemsize > MEMORY or first.shape != shape:
        return source
    label = as_array(read(source, 0)[1])
    images, labels = np.empty((size, *shape), first.dtype), np.empty((size, *label.shape), label.dtype)
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
    kept = np.flatnonzero(~unreadable) if what == "evaluation" else np.arange(size)
    return ArraySource(images[kept], labels[kept], [source.name_of(index) for index in kept.tolist()])


def warn(line: str) -> None:
    """Print a line to stderr."""
    print(printable(line, None), file=sys.stderr)


def _each(function: Callable[[int], Any], indices: Sequence[int], description: str, source: Source) -> Iterator:
    """Yield `function` of every index in order, with threads and a progress bar if images must be decoded."""
    if isinstance(source, ArraySource):
        yield from map(function, indices)
        return
    # For small images, a future for each would take as long as decoding it.
    chunks = [indices[i : i + 16] for i in range(0, len(indices), 16)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda chunk: [function(i) for i in chunk], chunks)
        flat = itertools.chain.from_iterable(results)
        yield from rich.progress.track(flat, description, total=len(indices))
