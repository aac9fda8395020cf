"""Images in folders: one folder for each class or, if labels are not needed, any folders."""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from train.config import Data
from train.data.channels import folder_channels
from train.data.fingerprint import Fingerprint, fingerprint_of_files
from train.data.sources import HELD_OUT, Parts, choose_split, count_images, held_out_note
from train.data.transforms import decode
from train.errors import UserError
from vit_jax.images import SUFFIXES


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files, decoded on access."""

    paths: list[str]
    labels: list[int]
    channels: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return decode(self.paths[index], self.channels, self.name_of(index)), self.labels[index]

    def name_of(self, index: int) -> str:
        return self.paths[index]


def open_folder(root: Path, config: Data) -> Parts:
    """Open a folder with a subfolder for each class.

    Args:
        root: The folder, with root/train/CLASS/FILE, and root/val, root/validation or root/test likewise.
        config: Its name and evaluation split.

    Raises:
        UserError: If a folder or all images of a class are missing, or a class exists for evaluation only.
    """
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
    channels, mixed = _channels(*(list(itertools.chain(*files.values())) for files in (train, evaluation)), config)
    sources = [_folder_source(files, class_names, channels) for files in (train, evaluation)]
    notes = mixed + _misplaced_note(root, misplaced) + _skipped_note(root, skipped)
    fingerprints = {
        "train": _fingerprint(root / "train", train, "split train"),
        "eval": _fingerprint(eval_root, evaluation, f"split {eval_root.name}"),
    }
    return Parts(*sources, class_names, notes, fingerprints)


def open_images(root: Path, config: Data) -> Parts:
    """Open all images in a folder, for objectives without labels.

    Args:
        root: The folder. Training images are all images below root/train, or below root if root/train does not exist;
            evaluation images are those below root/val, root/validation or root/test, otherwise a part of the training
            images is held out.
        config: Its name and evaluation split.

    Raises:
        UserError: If the folder or its images are missing.
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

    channels, mixed = _channels(train, evaluation, config)
    sources = [FolderSource(paths, [0] * len(paths), channels) for paths in (train, evaluation)]
    fingerprints = {
        "train": _fingerprint(train_root, {"": train}, "all images"),
        "eval": _fingerprint(eval_root or train_root, {"": evaluation}, f"split {split}" if split else "held out"),
    }
    return Parts(*sources, (), mixed + notes, fingerprints)


def _channels(train: list[str], evaluation: list[str], config: Data) -> tuple[int, tuple[str, ...]]:
    """Number of channels to read images with, and notes: as `config` says, otherwise as `folder_channels` finds."""
    return (config.channels, ()) if config.channels else folder_channels(train, evaluation)


def _hold_out(paths: list[str]) -> tuple[list[str], list[str]]:
    """Split paths into training and evaluation: a fixed random choice, HELD_OUT of them, is for evaluation."""
    count = max(1, round(HELD_OUT * len(paths)))
    drawn = set(np.random.default_rng(0).permutation(len(paths))[:count].tolist())
    return [p for i, p in enumerate(paths) if i not in drawn], [p for i, p in enumerate(paths) if i in drawn]


def _scan(split: Path, skipped: list[str], misplaced: list[str]) -> dict[str, list[str]]:
    """Image files by class name, both sorted.

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
    seen = {_identity(without)} if without else set()  # a link may lead back to a parent folder

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
    return (f"{len(skipped)} {'file' if len(skipped) == 1 else 'files'} skipped (empty or not an image): {names}",)


def _misplaced_note(root: Path, misplaced: list[str]) -> tuple[str, ...]:
    if not misplaced:
        return ()
    example = os.path.relpath(misplaced[0], root)
    reason = "because they are not directly in SPLIT/CLASS/"
    return (f"{count_images(len(misplaced))} not used, {reason}, such as {example}: move them there",)


def _flat_hint(misplaced: Sequence[str]) -> str:
    """Error text about images outside of class folders, which objectives without labels accept."""
    if not misplaced:
        return ""
    return (
        f", but {count_images(len(misplaced))} elsewhere, such as {misplaced[0]}: classes need a folder each; "
        "objectives without labels, such as --objective=mae, accept images in any folder"
    )
