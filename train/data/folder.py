"""Images in folders: one folder for each class or, if labels are not needed, any folders."""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from train.config import Data
from train.data.channels import common_form
from train.data.fingerprint import Fingerprint, fingerprint_of_files
from train.data.sources import DecodingSource, Parts
from train.data.splits import (
    EVAL_SPLITS,
    HELD_OUT,
    SPLIT,
    choose_split,
    count_images,
    divide,
    divided_note,
    held_out_note,
    hold_out,
    single_note,
)
from train.errors import UserError
from vit_jax.images import SUFFIXES, Form


@dataclasses.dataclass(frozen=True)
class FolderSource(DecodingSource):
    """Image files, decoded on access."""

    paths: list[str]
    labels: list[int]
    form: Form

    def __len__(self) -> int:
        return len(self.labels)

    def stored(self, index: int) -> tuple[str, int]:
        return self.paths[index], self.labels[index]

    def name_of(self, index: int) -> str:
        return self.paths[index]


def open_folder(path: str, config: Data, *, labels: bool = True) -> Parts:
    """Open a folder of images: with a subfolder for each class or, if labels are not needed, of any arrangement."""
    return (_open_classes if labels else _open_images)(Path(path).expanduser(), config)


def _open_classes(root: Path, config: Data) -> Parts:
    """Open a folder with a subfolder for each class.

    Args:
        root: The folder, with root/train/CLASS/FILE, and root/val, root/validation or root/test likewise. With
            `config.split`, with root/CLASS/FILE alone, and with root/train alone, a part of each class is held out
            for evaluation.
        config: Its name, evaluation split, and share of training images.

    Raises:
        UserError: If a folder or all images of a class are missing, or a class exists for evaluation only.
    """
    skipped: list[str] = []
    misplaced: list[str] = []
    if _is_unsplit(root, config):
        train, evaluation, notes = _divided(root, config, skipped, misplaced)
    else:
        train, evaluation, notes = _splits(root, config, skipped, misplaced)
    for split in (train, evaluation):
        if not any(split.files.values()):
            raise UserError(f"{config.name}: no images in {split.folder}/CLASS/{_flat_hint(misplaced)}")
    for name, paths in train.files.items():
        if not paths:
            raise UserError(f"{config.name}: no images in {train.folder / name}")
    if unknown := sorted(set(evaluation.files) - set(train.files)):
        raise UserError(f"{config.name}: {evaluation.folder} has a class that train lacks: {', '.join(unknown)}")

    class_names = tuple(train.files)
    every = [list(itertools.chain(*split.files.values())) for split in (train, evaluation)]
    form, mixed = common_form(*every, config)
    sources = [_folder_source(split.files, class_names, form) for split in (train, evaluation)]
    fingerprints = {
        name: _fingerprint(split.folder, split.files, split.origin)
        for name, split in (("train", train), ("eval", evaluation))
    }
    notes = (*notes, *mixed, *_misplaced_note(root, misplaced), *_skipped_note(root, skipped))
    return Parts(*sources, class_names, notes, fingerprints)


class _Split(NamedTuple):
    """A split of a folder: image files by class, where they are, and a description for fingerprints."""

    folder: Path
    files: dict[str, list[str]]
    origin: str


def _splits(
    root: Path, config: Data, skipped: list[str], misplaced: list[str]
) -> tuple[_Split, _Split, tuple[str, ...]]:
    """The training split in root/train and the evaluation split beside it or held out of it, and notes."""
    if not (root / "train").is_dir():
        missing = root / "train" if root.is_dir() else root
        hint = _flat_hint([entry.path for entry in _entries(root) if _is_image(entry)]) if root.is_dir() else ""
        expected = f"expected {root}/train/CLASS/ and {root}/val/CLASS/, or {root}/CLASS/"
        raise UserError(f"{config.name}: {expected}; there is no folder {missing}{hint}")
    name, notes = choose_split(config, _folders(root), required=False)
    if name is None:
        return _divided(root / "train", config, skipped, misplaced)
    folders = (root / "train", root / name)
    return *(_Split(f, _scan(f, skipped, misplaced), f"split {f.name}") for f in folders), notes


def _is_unsplit(root: Path, config: Data) -> bool:
    """Whether `root` has folders of classes in place of splits."""
    if not root.is_dir() or (root / "train").is_dir():
        return False
    if config.split is not None:
        return True
    folders = _folders(root)
    has_images = lambda name: any(map(_is_image, _entries(root / name)))
    return not set(folders) & set(EVAL_SPLITS) and any(map(has_images, folders))


def _divided(
    folder: Path, config: Data, skipped: list[str], misplaced: list[str]
) -> tuple[_Split, _Split, tuple[str, ...]]:
    """A training and an evaluation split with the same share of each class of `folder`, and notes.

    The choice is random, but the same for the same files. At least one image of each class is for training.
    """
    if config.eval_split is not None:
        raise UserError(f"{config.name} has no split {config.eval_split} to evaluate on: it has classes without splits")
    share = SPLIT if config.split is None else config.split
    files = _scan(folder, skipped, misplaced)
    parts = divide(list(files.values()), share)
    train, evaluation = (
        (dict(zip(files, part, strict=True)) for part in zip(*parts, strict=True)) if parts else ({}, {})
    )
    count = sum(map(len, evaluation.values()))
    if any(train.values()) and not count:
        raise UserError(f"{config.name}: one image in each class of {folder}: expected two or more, one to evaluate on")
    single = single_note({name: len(paths) for name, paths in files.items()})
    origins = (f"{share:g} of each class", f"the rest of {share:g} of each class")
    both = (_Split(folder, files, o) for files, o in zip((train, evaluation), origins, strict=True))
    return *both, (divided_note(count, share, "each class"), *single)


def _open_images(root: Path, config: Data) -> Parts:
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
    split, said = choose_split(config, _folders(root), required=False)
    eval_root = root / split if split else None
    skipped: list[str] = []
    train = images_below(train_root, skipped, without=eval_root)
    evaluation = images_below(eval_root, skipped) if eval_root else []
    notes = _skipped_note(root, skipped)
    if eval_root is None and len(train) > 1:
        share = HELD_OUT if config.split is None else 1 - config.split
        train, evaluation = hold_out(train, max(1, min(len(train) - 1, round(share * len(train)))))
        notes = (held_out_note(len(evaluation)), *notes)
    for folder, paths in ((train_root, train), (eval_root or train_root, evaluation)):
        if not paths:
            raise UserError(f"{config.name}: no images in {folder}" + ("" if eval_root else ": expected two or more"))

    form, mixed = common_form(train, evaluation, config)
    sources = [FolderSource(paths, [0] * len(paths), form) for paths in (train, evaluation)]
    fingerprints = {
        "train": _fingerprint(train_root, {"": train}, "all images"),
        "eval": _fingerprint(eval_root or train_root, {"": evaluation}, f"split {split}" if split else "held out"),
    }
    return Parts(*sources, (), said + mixed + notes, fingerprints)


def _scan(split: Path, skipped: list[str], misplaced: list[str]) -> dict[str, list[str]]:
    """Image files by class name, both sorted.

    Images outside split/CLASS/ are appended to `misplaced`, other files to `skipped`.
    """
    files: dict[str, list[str]] = {}
    for entry in _entries(split):
        if entry.name.startswith(".") or not os.path.isdir(entry.path):
            (misplaced if _is_image(entry) else skipped).append(entry.path)
            continue
        files[entry.name] = []
        for file in _entries(entry.path):
            if _is_image(file):
                files[entry.name].append(file.path)
            elif os.path.isdir(file.path) and not file.name.startswith(".") and (below := images_below(file.path)):
                misplaced += below
            else:
                skipped.append(file.path)
    return files


def images_below(folder: Path | str, skipped: list[str] | None = None, without: Path | None = None) -> list[str]:
    """Image files at any depth, sorted by folder and name, except those below the folder `without`.

    Other files are appended to `skipped`, if given.
    """
    images, skipped = [], [] if skipped is None else skipped
    seen = {_identity(without)} if without else set()  # a link may lead back to a parent folder

    def walk(folder):
        if (found := _identity(folder)) in seen:
            return
        seen.add(found)
        for entry in _entries(folder):
            if _is_image(entry):
                images.append(entry.path)
            elif os.path.isdir(entry.path) and not entry.name.startswith("."):
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
    return [entry.name for entry in _entries(root) if os.path.isdir(entry.path) and entry.name != "train"]


def _is_image(file: os.DirEntry) -> bool:
    suffix = os.path.splitext(file.name)[1].lower()
    visible = not file.name.startswith(".")
    return visible and suffix in SUFFIXES and os.path.isfile(file.path) and file.stat().st_size > 0


def _folder_source(files: dict[str, list[str]], class_names: tuple[str, ...], form: Form) -> FolderSource:
    numbers = {name: number for number, name in enumerate(class_names)}
    pairs = [(path, numbers[name]) for name, paths in files.items() for path in paths]
    return FolderSource([path for path, _ in pairs], [number for _, number in pairs], form)


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
