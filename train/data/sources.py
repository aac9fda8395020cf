"""The interface of all sources of images, and the included digits; `folder.py` and `tfds.py` open the other sources.

A source has a length, and its item i is (image (h, w, c) of the file's own size, target). All images have samples of
one type: uint8, uint16 or float32. The target is the int of a class, or float32 (k,) with 0 or 1 for each label, or
with numbers. With an attribute `labels`, the targets of all examples, these are known without reading images.
"""

import abc
import contextlib
import dataclasses
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np

from train.config import Data
from train.data.fingerprint import Fingerprint, fingerprint_of_arrays
from train.data.splits import choose_split
from train.data.transforms import Unreadable, opened, pixels_of
from vit_jax.images import File, Form, OpenImage

STAND_INS = 100  # images to try in place of an unreadable one; if all fail, the fault is elsewhere

Target = int | np.ndarray
Source = grain.sources.RandomAccessDataSource[tuple[np.ndarray, Target]]


class Parts(NamedTuple):
    """An opened dataset. `class_names` are those of classes, labels, or columns of numbers.

    If labels are not needed, they may all be 0 and `class_names` may be empty.
    """

    train: Source
    eval: Source
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprints: Mapping[str, Fingerprint]  # "train" and "eval"


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Decoded images of one size, in memory."""

    images: np.ndarray  # (n, h, w, c)
    labels: np.ndarray  # int32 (n,) or float32 (n, k)
    names: Sequence[str] = ()  # files that the images were decoded from, if there are any

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Target]:
        label = self.labels[index]
        return self.images[index], label if label.ndim else int(label)

    def name_of(self, index: int) -> str:
        return self.names[index] if self.names else ""


class DecodingSource(abc.ABC):
    """Base of sources whose images are decoded on access.

    Attributes:
        form: How images are decoded.
    """

    form: Form

    @abc.abstractmethod
    def stored(self, index: int) -> tuple[File, Target]:
        """The file of an image, or its content, and its target."""

    @abc.abstractmethod
    def name_of(self, index: int) -> str: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, Target]:
        return self.transformed(index, pixels_of)

    def transformed(self, index: int, transform: Callable[[OpenImage], np.ndarray]) -> tuple[np.ndarray, Target]:
        """Apply `transform` to an image that is not decoded yet. Returns its result and the target."""
        file, target = self.stored(index)
        with opened(file, self.form.channels, self.name_of(index), self.form.pixels) as image:
            return transform(image), target


def as_array(target: Target) -> np.ndarray:
    """A target, or those of several examples, as an array: int32 for classes, float32 for labels or numbers."""
    array = np.asarray(target)
    return array.astype(np.int32 if np.issubdtype(array.dtype, np.integer) else np.float32)


def read(
    source: Source, index: int, transform: Callable[[np.ndarray | OpenImage], np.ndarray] = pixels_of
) -> tuple[np.ndarray, Target, int]:
    """Read an example or, if it is unreadable, the next readable one.

    The replacement is always the same, so that a resumed run sees the same images.

    Args:
        source: The source.
        index: Index of the example.
        transform: Takes the image, which need not be decoded yet.

    Returns:
        What `transform` returns, the target, and the index of the example that was read.

    Raises:
        Unreadable: If STAND_INS examples in a row are unreadable.
    """
    for used in ((index + ahead) % len(source) for ahead in range(min(STAND_INS, len(source)))):
        with contextlib.suppress(Unreadable):
            return *_transformed(source, used, transform), used
    return *_transformed(source, index, transform), index


def _transformed(
    source: Source, index: int, transform: Callable[[np.ndarray | OpenImage], np.ndarray]
) -> tuple[np.ndarray, Target]:
    if isinstance(source, DecodingSource):
        return source.transformed(index, transform)
    image, target = source[index]
    return transform(image), target


def evenly_spaced(count: int, most: int) -> Sequence[int]:
    """Up to `most` evenly spaced indices of `count` examples."""
    most = min(count, most)
    return [i * count // most for i in range(most)]


def open_digits(_: str, config: Data, *, labels: bool = True) -> Parts:
    """Open 1,797 scans of handwritten digits, 8x8 pixels, as scikit-learn has them; 360 are held out for evaluation.

    They are in the file `digits.npz`, because importing scikit-learn takes a second.
    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (UCI, CC BY 4.0), the test set.
    """
    choose_split(config, ["test"])
    with (importlib.resources.files("train.data") / "digits.npz").open("rb") as file, np.load(file) as arrays:
        train, test = (
            ArraySource(
                np.repeat(arrays[f"{split}_images"], config.channels or 1, axis=-1),
                arrays[f"{split}_labels"].astype(np.int32),
            )
            for split in ("train", "test")
        )
    fingerprints = {
        name: fingerprint_of_arrays("images in memory", len(part), (part.images, part.labels))
        for name, part in (("train", train), ("eval", test))
    }
    return Parts(train, test, tuple("0123456789"), (), fingerprints)
