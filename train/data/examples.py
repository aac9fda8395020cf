"""Make a dataset of encoded images and label columns, from tables, Hugging Face datasets and tar shards alike."""

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from train.config import Data
from train.data.channels import EncodedImage, common_form
from train.data.fingerprint import Fingerprint, digest_of, fingerprint_of_files
from train.data.sources import DecodingSource, Parts, Target
from train.data.splits import HELD_OUT, SPLIT, choose_split, divide, divided_note, held_out_note, single_note
from train.data.targets import Columns, encode
from train.data.transforms import Unreadable
from train.errors import UserError
from vit_jax.images import File, Form

SAMPLE = 100  # images whose content is in a fingerprint


class Examples(NamedTuple):
    """The examples of a split, as they are stored.

    Attributes:
        files: Path or content of each encoded image.
        names: Names of the examples, for messages and fingerprints.
        labels: Values by label column; empty if labels are not needed.
    """

    files: Sequence[File]
    names: Sequence[str]
    labels: Mapping[str, Sequence]


@dataclasses.dataclass(frozen=True)
class Subset(Sequence):
    """Some elements of a sequence that is read on access."""

    sequence: Sequence
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.sequence[int(self.indices[index])]


@dataclasses.dataclass(frozen=True)
class EncodedSource(DecodingSource):
    """Encoded images, decoded on access."""

    files: Sequence[File]
    names: Sequence[str]
    labels: np.ndarray
    form: Form

    def __len__(self) -> int:
        return len(self.labels)

    def stored(self, index: int) -> tuple[File, Target]:
        target = self.labels[index]
        return self.files[index], int(target) if target.ndim == 0 else target

    def name_of(self, index: int) -> str:
        return self.names[index]


class Selection(NamedTuple):
    """The examples for training and for evaluation.

    Attributes:
        examples: The examples of both.
        targets: Their encoded labels.
        origins: Names of the splits, for fingerprints.
        class_names: Names of the classes, labels, or columns of numbers.
        notes: Lines for the user.
    """

    examples: Sequence[Examples]
    targets: Sequence[np.ndarray]
    origins: Sequence[str]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def open_examples(
    config: Data,
    splits: Mapping[str, Examples],
    *,
    labels: bool,
    class_names: Sequence[str] | None = None,
    notes: tuple[str, ...] = (),
) -> Parts:
    """Choose the splits, encode the labels, and find the form of the images.

    Args:
        config: Its splits, target and channels.
        splits: The examples by split. Without a split for evaluation, a part of "train" is held out.
        labels: Whether labels are needed.
        class_names: Names of the classes or labels, if the data states them.
        notes: Lines for the user.

    Raises:
        UserError: If there is no training split, a split is empty, or a label is missing or unsuitable.
    """
    chosen = select(config, splits, labels=labels, class_names=class_names)
    form, mixed = common_form(*map(_images, chosen.examples), config)
    sources = [EncodedSource(e.files, e.names, t, form) for e, t in zip(chosen.examples, chosen.targets, strict=True)]
    fingerprints = {
        part: _fingerprint(f"split {name}", source)
        for part, name, source in zip(("train", "eval"), chosen.origins, sources, strict=True)
    }
    return Parts(*sources, chosen.class_names, (*notes, *chosen.notes, *mixed), fingerprints)


def select(
    config: Data, splits: Mapping[str, Examples], *, labels: bool, class_names: Sequence[str] | None = None
) -> Selection:
    """Choose the splits and encode the labels; see `open_examples`."""
    if "train" not in splits:
        raise UserError(f"{config.name} has no split train; it has: {', '.join(splits) or 'none'}")
    chosen, said = choose_split(config, [name for name in splits if name != "train"], required=False)
    names = ["train", chosen] if chosen else ["train"]
    for name in names:
        if not len(splits[name].files):
            raise UserError(f"{config.name} has no images in the split {name}")
    used = [splits[name] for name in names]
    targets, class_names = _encoded(config, used, class_names) if labels else (_without_labels(used), ())
    if not chosen:
        share = config.split or (SPLIT if labels else 1 - HELD_OUT)
        used, targets = _divided(config, used[0], targets[0], share, labels)
        count = len(used[1].files)
        is_default = not labels and config.split is None
        said = (held_out_note(count) if is_default else divided_note(count, share, _unit(config)),)
        if labels and config.target == "class":
            counts = np.bincount(np.concatenate(targets), minlength=len(class_names)).tolist()
            said += single_note(dict(zip(class_names, counts, strict=True)))
        names = [f"{share:g} of the images", f"the rest of {share:g} of the images"]
    return Selection(used, targets, names, tuple(class_names), said)


def _encoded(config: Data, splits: Sequence[Examples], names: Sequence[str] | None):
    return encode(config, [Columns(split.labels, split.names) for split in splits], names)


def _without_labels(splits: Sequence[Examples]) -> list[np.ndarray]:
    return [np.zeros(len(split.files), np.int32) for split in splits]


def _unit(config: Data) -> str:
    return "each class" if config.target == "class" else "the images"


def _divided(
    config: Data, examples: Examples, targets: np.ndarray, share: float, labels: bool
) -> tuple[list[Examples], list[np.ndarray]]:
    """Hold out a part of each class or, if there are no classes, of all examples."""
    indices = np.arange(len(targets))
    are_classes = labels and config.target == "class"
    groups = [indices[targets == number] for number in np.unique(targets)] if are_classes else [indices]
    divided = divide([group.tolist() for group in groups], share)
    parts = [np.sort(np.concatenate(part)).astype(int) for part in zip(*divided, strict=True)]
    if not len(parts[1]):
        found = "one image in each class" if are_classes else "one image"
        raise UserError(f"{config.name} has {found}: expected two or more, one to evaluate on")
    chosen = [Examples(Subset(examples.files, part), Subset(examples.names, part), {}) for part in parts]
    return chosen, [targets[part] for part in parts]


def _images(examples: Examples) -> list[EncodedImage]:
    return [EncodedImage(examples.files, i, examples.names[i]) for i in range(len(examples.files))]


def _fingerprint(origin: str, source: EncodedSource) -> Fingerprint:
    """The fingerprint of the examples' names and targets, and of some images that are not stored as files."""
    count = len(source)
    files = fingerprint_of_files(origin, {"": [source.name_of(index) for index in range(count)]})
    contents = []
    for index in range(0, count, -(-count // SAMPLE)):
        with contextlib.suppress(Unreadable):
            file = source.files[index]
            contents += [file.getvalue()] if isinstance(file, io.BytesIO) else []
    return files._replace(digest=digest_of([files.digest.encode(), source.labels.tobytes(), *contents]))
