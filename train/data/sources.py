"""Where images come from: the embedded digits or a folder of files; `tfds.py` has what TFDS has prepared.

A source has a length, and its item i is (uint8 image (h, w, c) of the file's own size, int label).
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from train.config import Data
from train.data.channels import folder_channels
from train.data.fingerprint import Fingerprint, fingerprint_of_arrays, fingerprint_of_files
from train.data.transforms import SUFFIXES, Unreadable, decode
from train.errors import UserError

EVAL_SPLITS = ("val", "validation", "test")
STAND_INS = 100  # neighbours to try in place of an unreadable image; beyond that, the fault is not the image's

HELD_OUT = 0.1  # share of the images for evaluation, if there is no split for it and labels are not needed

Source = grain.sources.RandomAccessDataSource[tuple[np.ndarray, int]]


class Parts(NamedTuple):
    """An opened dataset. If labels are not needed, they may all be 0, and there may be no class names."""

    train: Source
    eval: Source
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprints: Mapping[str, Fingerprint]  # "train" and "eval"


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images of one size, decoded, in memory."""

    images: np.ndarray  # uint8 (n, h, w, c)
    labels: np.ndarray  # int32 (n,)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files, decoded when asked for."""

    paths: list[str]
    labels: list[int]
    channels: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return decode(self.paths[index], self.channels, self.name_of(index)), self.labels[index]

    def name_of(self, index: int) -> str:
        return self.paths[index]


def read(source: Source, index: int) -> tuple[np.ndarray, int, int]:
    """Image and label of an example, or where it cannot be read, of the next that can; and the index that was read.

    The same stands in every time, so that a run which is resumed sees what it would have seen. Raises Unreadable after
    STAND_INS in a row.
    """
    for used in ((index + ahead) % len(source) for ahead in range(min(STAND_INS, len(source)))):
        with contextlib.suppress(Unreadable):
            return *source[used], used
    return *source[index], index


def open_digits(config: Data) -> Parts:
    """scikit-learn's 1,797 scans of 8x8 pixels (UCI's optdigits test set), a fifth of each class held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    choose_split(config, ["test"])
    scans = load_digits()
    images = np.round(scans.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = scans.target.astype(np.int32)
    rows = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    train, test = (ArraySource(images[r], labels[r]) for r in rows)
    fingerprints = {
        name: fingerprint_of_arrays("images in memory", len(part), (part.images, part.labels))
        for name, part in (("train", train), ("eval", test))
    }
    return Parts(train, test, tuple(str(name) for name in scans.target_names), (), fingerprints)


def open_folder(root: Path, config: Data) -> Parts:
    """root/train/CLASS/FILE, and root/val, root/validation or root/test likewise."""
    if not (root / "train").is_dir():
        missing = root / "train" if root.is_dir() else root
        hint = _flat_hint([entry.path for entry in _entries(root) if _is_image(entry)]) if root.is_dir() else ""
        expected = f"expected {root}/train/CLASS/ and {root}/val/CLASS/"
        raise UserError(f"{config.name}: {expected}; there is no folder {missing}{hint}")
    eval_root = root / choose_split(config, _folders(root))

    skipped: list[str] = []
    misplaced: list[str] = []
    train = _scan(root / "train", skipped, misplaced)
    evaluation = _scan(eval_root, skipped, misplaced)
    for folder, files in ((root / "train", train), (eval_root, evaluation)):
        if not any(files.values()):
            raise UserError(f"{config.name}: no images in {folder}/CLASS/{_flat_hint(misplaced)}")
    for name, paths in train.items():
        if not paths:
            raise UserError(f"{config.name}: no images in {root / 'train' / name}")
    if unknown := sorted(set(evaluation) - set(train)):
        raise UserError(f"{config.name}: {eval_root} has a class that train lacks: {', '.join(unknown)}")

    class_names = tuple(train)
    channels, mixed = folder_channels(*(list(itertools.chain(*files.values())) for files in (train, evaluation)))
    sources = [_folder_source(files, class_names, channels) for files in (train, evaluation)]
    notes = mixed + _misplaced_note(root, misplaced) + _skipped_note(root, skipped)
    fingerprints = {
        "train": _fingerprint(root / "train", train, "split train"),
        "eval": _fingerprint(eval_root, evaluation, f"split {eval_root.name}"),
    }
    return Parts(*sources, class_names, notes, fingerprints)


def open_images(root: Path, config: Data) -> Parts:
    """All images below root/train, or below root where there is no such folder, for objectives without labels.

    They are evaluated on root/val, root/validation or root/test, or else on a part of them that is held out.
    """
    if not root.is_dir():
        raise UserError(f"{config.name}: there is no folder {root}")
    train_root = root / "train" if (root / "train").is_dir() else root
    split = choose_split(config, _folders(root), required=False)
    eval_root = root / split if split else None
    skipped: list[str] = []
    train = _images_below(train_root, skipped, without=eval_root)
    evaluation = _images_below(eval_root, skipped) if eval_root else []
    notes = _skipped_note(root, skipped)
    if eval_root is None and len(train) > 1:
        train, evaluation = _hold_out(train)
        notes = (held_out_note(len(evaluation)), *notes)
    for folder, paths in ((train_root, train), (eval_root or train_root, evaluation)):
        if not paths:
            raise UserError(f"{config.name}: no images in {folder}" + ("" if eval_root else ": expected two or more"))

    channels, mixed = folder_channels(train, evaluation)
    sources = [FolderSource(paths, [0] * len(paths), channels) for paths in (train, evaluation)]
    fingerprints = {
        "train": _fingerprint(train_root, {"": train}, "all images"),
        "eval": _fingerprint(eval_root or train_root, {"": evaluation}, f"split {split}" if split else "held out"),
    }
    return Parts(*sources, (), mixed + notes, fingerprints)


def _hold_out(paths: list[str]) -> tuple[list[str], list[str]]:
    """Split paths into training and evaluation by a fixed random draw of HELD_OUT of them."""
    count = max(1, round(HELD_OUT * len(paths)))
    drawn = set(np.random.default_rng(0).permutation(len(paths))[:count].tolist())
    return [p for i, p in enumerate(paths) if i not in drawn], [p for i, p in enumerate(paths) if i in drawn]


def held_out_note(count: int) -> str:
    """The note for data without an evaluation split."""
    return f"no split {' or '.join(EVAL_SPLITS)}: {_images(count)} held out for evaluation"


def _scan(split: Path, skipped: list[str], misplaced: list[str]) -> dict[str, list[str]]:
    """Class name to image files, both sorted.

    Images outside split/CLASS/ are appended to `misplaced`, other files to `skipped`.
    """
    files: dict[str, list[str]] = {}
    for entry in _entries(split):
        if entry.name.startswith(".") or not entry.is_dir():
            (misplaced if _is_image(entry) else skipped).append(entry.path)
            continue
        files[entry.name] = []
        for file in _entries(entry.path):
            if _is_image(file):
                files[entry.name].append(file.path)
            elif file.is_dir() and not file.name.startswith(".") and (below := _images_below(file.path, [])):
                misplaced += below
            else:
                skipped.append(file.path)
    return files


def _images_below(folder: Path | str, skipped: list[str], without: Path | None = None) -> list[str]:
    """Image files at any depth, sorted by folder and name, except those below the folder `without`.

    Other files are appended to `skipped`.
    """
    images = []
    seen = {_identity(without)} if without else set()  # a link may lead back to a folder above

    def walk(folder):
        if (found := _identity(folder)) in seen:
            return
        seen.add(found)
        for entry in _entries(folder):
            if _is_image(entry):
                images.append(entry.path)
            elif entry.is_dir() and not entry.name.startswith("."):
                walk(entry.path)
            else:
                skipped.append(entry.path)

    walk(folder)
    return images


def _identity(path: Path | str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _entries(folder: Path | str) -> list[os.DirEntry]:
    """The entries of a folder, sorted by name. Raises UserError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be listed: {error.strerror}") from error


def _folders(root: Path) -> list[str]:
    """Names of the folders other than "train", which may be splits."""
    return [entry.name for entry in _entries(root) if entry.is_dir() and entry.name != "train"]


def _is_image(file: os.DirEntry) -> bool:
    suffix = os.path.splitext(file.name)[1].lower()
    visible = not file.name.startswith(".")
    return visible and suffix in SUFFIXES and file.is_file() and file.stat().st_size > 0


def _folder_source(files: dict[str, list[str]], class_names: tuple[str, ...], channels: int) -> FolderSource:
    numbers = {name: number for number, name in enumerate(class_names)}
    pairs = [(path, numbers[name]) for name, paths in files.items() for path in paths]
    return FolderSource([path for path, _ in pairs], [number for _, number in pairs], channels)


def _fingerprint(folder: Path, files: Mapping[str, Sequence[str]], origin: str) -> Fingerprint:
    """The fingerprint of a split's files, named by their paths within its folder."""
    start = len(os.path.join(folder, ""))
    return fingerprint_of_files(origin, {name: [path[start:] for path in paths] for name, paths in files.items()})


def _skipped_note(root: Path, skipped: list[str]) -> tuple[str, ...]:
    if not skipped:
        return ()
    names = ", ".join(os.path.relpath(path, root) for path in skipped[:3]) + (", ..." if skipped[3:] else "")
    return (f"{len(skipped)} {'file' if len(skipped) == 1 else 'files'} skipped, empty or no image: {names}",)


def _misplaced_note(root: Path, misplaced: list[str]) -> tuple[str, ...]:
    if not misplaced:
        return ()
    example = os.path.relpath(misplaced[0], root)
    reason = "because they are not directly in SPLIT/CLASS/"
    return (f"{_images(len(misplaced))} not used, {reason}, such as {example}: move them there",)


def _flat_hint(misplaced: Sequence[str]) -> str:
    """Error text about images outside of class folders, which objectives without labels accept."""
    if not misplaced:
        return ""
    return (
        f", but {_images(len(misplaced))} elsewhere, such as {misplaced[0]}: classes need a folder each; "
        "objectives without labels, such as --objective=mae, accept images in any folder"
    )


def _images(count: int) -> str:
    return f"{count:,} {'image' if count == 1 else 'images'}"


def choose_split(config: Data, splits: Sequence[str], *, required: bool = True) -> str | None:
    """The evaluation split: the one asked for, or the first usual one, among `splits`.

    None if it is not `required`, not asked for, and not there. Raises UserError if it is missing otherwise.
    """
    wanted = EVAL_SPLITS if config.eval_split is None else (config.eval_split,)
    for name in wanted:
        if name in splits:
            return name
    if not required and config.eval_split is None:
        return None
    others = f"it has: {', '.join(splits)}" if splits else "it has none"
    raise UserError(f"{config.name} has no split {' or '.join(wanted)} to evaluate on; {others}")
