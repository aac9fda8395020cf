"""Images and labels in numpy's arrays: an .npz file, or a folder of .npy files, which are mapped into memory."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from train.config import Data
from train.data.array_files import Stored, loaded, mapped, stored_arrays
from train.data.examples import Examples, select
from train.data.fingerprint import Fingerprint, digest_of
from train.data.sources import ArraySource, Parts
from train.data.transforms import Unreadable
from train.errors import UserError, one_line, one_line_errors
from vit_jax.images.npy import check_channels
from vit_jax.images.samples import Form, as_pixels, check_size, converted, pixels_of, recoloured

SAMPLE = 100  # images whose content is in a fingerprint

# For each target, the types and numbers of columns of labels, and a description of them.
EXPECTED = {
    "class": ("biufUS", range(1, 2), "whole numbers or text (images,)"),
    "multilabel": ("biuf", range(2, 1_000_001), "0 or 1 (images, labels)"),
    "regression": ("biuf", range(1, 1_000_001), "numbers (images,) or (images, numbers)"),
}

# Names of the images and labels of each split; the last ones are those of Keras' files.
NAMES = {
    split: ((f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}"))
    for split in ("train", "val", "validation", "test")
}
NAMES["train"] += (("images", "labels"),)


@dataclasses.dataclass(frozen=True)
class MappedSource:
    """Images of a .npy file, read on access."""

    stored: Stored
    indices: np.ndarray
    labels: np.ndarray
    form: Form

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int | np.ndarray]:
        label = self.labels[index]
        try:
            image = _in_form(mapped(self.stored)[self.indices[index]], self.form)
        except (OSError, ValueError) as error:
            raise Unreadable(f"cannot read {self.name_of(index)}: {one_line(error)}") from error
        return image, label if label.ndim else int(label)

    def name_of(self, index: int) -> str:
        return f"image {self.indices[index]} of {self.stored.name}"


@dataclasses.dataclass(frozen=True)
class _Rows(Sequence):
    """The rows of an array as (array, index), or their names for messages."""

    stored: Stored
    as_names: bool = False

    def __len__(self) -> int:
        return self.stored.shape[0]

    def __getitem__(self, index: int) -> tuple[Stored, int] | str:
        if index >= len(self):
            raise IndexError(index)
        return f"image {index} of {self.stored.name}" if self.as_names else (self.stored, index)


def open_arrays(path: str, config: Data, *, labels: bool = True) -> Parts:
    """Open arrays of images (n, h, w) or (n, h, w, c), and of labels.

    Args:
        path: An .npz file, which is read into memory, or a folder of .npy files, which need not fit into it. The arrays
            are named as in NAMES; class_names is optional.
        config: Its splits, target and form of images.
        labels: Whether labels are needed.

    Raises:
        UserError: If an array is missing, damaged, or has an unsuitable shape, type or value.
    """
    root = Path(path).expanduser()
    arrays = stored_arrays(root)
    pairs = _pairs(root, arrays, labels=labels)
    form = _form([images for images, _ in pairs.values()], config)
    class_names = _class_names(arrays)
    columns = lambda *pair: _columns(*pair, config, class_names) if labels else {}
    examples = {
        split: Examples(_Rows(images), _Rows(images, as_names=True), columns(images, those))
        for split, (images, those) in pairs.items()
    }
    known = class_names if config.target == "class" else None
    chosen = select(config, examples, labels=labels, class_names=known)
    in_memory = functools.lru_cache(_pixels)  # a divided array serves for training and evaluation
    sources, fingerprints = [], {}
    for part, split, targets, origin in zip(
        ("train", "eval"), chosen.examples, chosen.targets, chosen.origins, strict=True
    ):
        (stored, _), indices = split.files[0], np.array([index for _, index in split.files])
        if stored.member:
            images = in_memory(stored, form)
            source = ArraySource(images if len(indices) == len(images) else images[indices], targets)
        else:
            source = MappedSource(stored, indices, targets, form)
        sources.append(source)
        fingerprints[part] = _fingerprint(f"split {origin}", source)
    return Parts(*sources, chosen.class_names, chosen.notes, fingerprints)


def _pairs(root: Path, arrays: Mapping[str, Stored], *, labels: bool) -> dict[str, tuple[Stored, Stored | None]]:
    """The images and labels of each split. Raises UserError if there are none for training, or labels are missing."""
    pairs = {}
    for split, names in NAMES.items():
        found = [pair for pair in names if pair[0] in arrays]
        if len(found) > 1:
            raise UserError(f"{root} has images for the split {split} twice: {found[0][0]} and {found[1][0]}")
        for of_images, of_labels in found:
            if labels and of_labels not in arrays:
                raise UserError(f"{root} has {of_images}, but no array {of_labels}")
            pairs[split] = arrays[of_images], arrays.get(of_labels)
    if "train" not in pairs:
        others = ", ".join(sorted(arrays)[:10]) or "none"
        raise UserError(f"{root} has no arrays images and labels, train_images, or x_train; it has: {others}")
    return pairs


def _form(arrays: Sequence[Stored], config: Data) -> Form:
    """The form in which the images of all splits are read."""
    forms = {}
    for stored in arrays:
        with one_line_errors(f"{stored.name} cannot be read"):
            if not 3 <= len(stored.shape) <= 4:
                raise ValueError(f"its shape is {stored.shape}: expected (images, height, width[, channels])")
            height, width, channels = (*stored.shape[1:], 1)[:3]
            check_size(width, height, channels * stored.dtype.itemsize)
            if config.channels != channels:
                check_channels((height, width, channels))
            pixels = pixels_of(stored.dtype)
            form = Form(config.channels or channels, config.pixels or pixels)
            _in_form(np.zeros((1, 1, channels), pixels), form)  # raises ValueError if it cannot be read so
            forms[form] = stored
    if len(forms) > 1:
        found = " and ".join(f"{channels} x {pixels} ({forms[channels, pixels].name})" for channels, pixels in forms)
        raise UserError(f"arrays of images differ in channels or type: {found}")
    return form


def _in_form(samples: np.ndarray, form: Form) -> np.ndarray:
    """Images or an image, (..., h, w, c) or (h, w), as they are read. Raises ValueError if they do not fit."""
    samples = samples[..., None] if samples.ndim == 2 else samples
    return converted(recoloured(as_pixels(np.asarray(samples)), form.channels), form.pixels)


def _pixels(stored: Stored, form: Form) -> np.ndarray:
    """All images of an array (n, h, w, c), in memory."""
    samples = loaded(stored)
    with one_line_errors(f"{stored.name} cannot be read"):
        return np.ascontiguousarray(_in_form(samples if samples.ndim == 4 else samples[..., None], form))


def _class_names(arrays: Mapping[str, Stored]) -> tuple[str, ...] | None:
    if "class_names" not in arrays:
        return None
    stored = arrays["class_names"]
    if len(stored.shape) != 1 or stored.dtype.kind not in "US":
        raise UserError(f"{stored.name} is of shape {stored.shape} and type {stored.dtype}: expected text (classes,)")
    with one_line_errors(f"{stored.name} cannot be read"):
        names = tuple(name.decode() if isinstance(name, bytes) else name for name in loaded(stored).tolist())
    if len(set(names)) < len(names) or not all(names):
        raise UserError(f"{stored.name} has a name that is empty or repeated")
    return names


def _columns(images: Stored, stored: Stored, config: Data, class_names: tuple[str, ...] | None) -> dict[str, Sequence]:
    """The labels of a split as columns."""
    if not stored.shape or stored.shape[0] != images.shape[0]:
        count = stored.shape[0] if stored.shape else 1
        raise UserError(f"{stored.name} has {count:,} labels, but {images.name} has {images.shape[0]:,} images")
    values = loaded(stored)
    values = values[:, None] if values.ndim == 1 else values
    kinds, columns, expected = EXPECTED[config.target]
    if values.ndim != 2 or values.dtype.kind not in kinds or values.shape[1] not in columns:
        what = f"{stored.name} is of shape {stored.shape} and type {stored.dtype}"
        raise UserError(f"{what}: expected {expected} for --data.target={config.target}")
    if config.target != "class":
        prefix = "number " if config.target == "regression" else ""
        names = class_names or [f"{prefix}{i}" for i in range(values.shape[1])]
        if len(names) != values.shape[1]:
            raise UserError(f"class_names has {len(names)} names, but {stored.name} has {values.shape[1]} columns")
        return {name: column.tolist() for name, column in zip(names, values.T, strict=True)}
    values = values[:, 0]
    if class_names and values.dtype.kind in "iu":
        wrong = np.flatnonzero((values < 0) | (values >= len(class_names)))
        if wrong.size:
            label = f"the label of image {wrong[0]} of {images.name} is {values[wrong[0]]}"
            raise UserError(
                f"{label}: expected 0 to {len(class_names) - 1}, as there are {len(class_names)} class_names"
            )
        values = np.array(class_names)[values]
    return {"labels": [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]}


def _fingerprint(origin: str, source: ArraySource | MappedSource) -> Fingerprint:
    """The fingerprint of all targets and of some images."""
    count, contents = len(source), []
    for index in range(0, count, -(-count // SAMPLE)):
        with contextlib.suppress(Unreadable):
            contents.append(source[index][0].tobytes())
    return Fingerprint(origin, count, digest_of([source.labels.tobytes(), *contents]), {}, ())
