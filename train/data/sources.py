"""Where images come from: the embedded digits, a folder per class, or a dataset that TFDS has prepared.

A source has a length, and its item i is (uint8 image (h, w, c) of the file's own size, int label).
"""

import contextlib
import dataclasses
import io
import itertools
import os
from pathlib import Path
from typing import Any

import grain
import numpy as np

from train.config import Data, UserError
from train.data.channels import folder_channels
from train.data.transforms import SUFFIXES, Unreadable, decode, image_channels

EVAL_SPLITS = ("val", "validation", "test")
STAND_INS = 100  # neighbours to try in place of an unreadable image; beyond that, the fault is not the image's

Source = grain.sources.RandomAccessDataSource[tuple[np.ndarray, int]]
Parts = tuple[Source, Source, tuple[str, ...], tuple[str, ...]]  # training, evaluation, class names, notes


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


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Records of encoded images, decoded when asked for."""

    records: Any  # of tfds, with images left encoded
    image_key: str
    label_key: str
    channels: int
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        record = self.records[index]
        image = decode(io.BytesIO(record[self.image_key]), self.channels, self.name_of(index))
        return image, int(record[self.label_key])

    def name_of(self, index: int) -> str:
        return f"{index} of {self.name}"


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

    _choose_split(config, ["test"])
    scans = load_digits()
    images = np.round(scans.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = scans.target.astype(np.int32)
    rows = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    train, test = (ArraySource(images[r], labels[r]) for r in rows)
    return train, test, tuple(str(name) for name in scans.target_names), ()


def open_folder(root: Path, config: Data) -> Parts:
    """root/train/CLASS/FILE, and root/val, root/validation or root/test likewise."""
    if not (root / "train").is_dir():
        missing = root / "train" if root.is_dir() else root
        raise UserError(f"{config.name}: there is no folder {missing}")
    splits = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name != "train")
    eval_root = root / _choose_split(config, splits)

    skipped: list[str] = []
    train = _scan(root / "train", skipped)
    evaluation = _scan(eval_root, skipped)
    for folder, files in ((root / "train", train), (eval_root, evaluation)):
        if not any(files.values()):
            raise UserError(f"{config.name}: no images in {folder}/CLASS/")
    for name, paths in train.items():
        if not paths:
            raise UserError(f"{config.name}: no images in {root / 'train' / name}")
    if unknown := sorted(set(evaluation) - set(train)):
        raise UserError(f"{config.name}: {eval_root} has a class that train lacks: {', '.join(unknown)}")

    class_names = tuple(train)
    channels, mixed = folder_channels(*(list(itertools.chain(*files.values())) for files in (train, evaluation)))
    sources = [_folder_source(files, class_names, channels) for files in (train, evaluation)]
    return *sources, class_names, (*mixed, *_skipped_note(root, skipped))


def _scan(split: Path, skipped: list[str]) -> dict[str, list[str]]:
    """Class name to image files, both sorted; whatever else lies there is appended to `skipped`."""
    files: dict[str, list[str]] = {}
    for entry in sorted(os.scandir(split), key=lambda entry: entry.name):
        if entry.name.startswith(".") or not entry.is_dir():
            skipped.append(entry.path)
            continue
        files[entry.name] = []
        for file in sorted(os.scandir(entry.path), key=lambda file: file.name):
            (files[entry.name] if _is_image(file) else skipped).append(file.path)
    return files


def _is_image(file: os.DirEntry) -> bool:
    suffix = os.path.splitext(file.name)[1].lower()
    visible = not file.name.startswith(".")
    return visible and suffix in SUFFIXES and file.is_file() and file.stat().st_size > 0


def _folder_source(files: dict[str, list[str]], class_names: tuple[str, ...], channels: int) -> FolderSource:
    numbers = {name: number for number, name in enumerate(class_names)}
    pairs = [(path, numbers[name]) for name, paths in files.items() for path in paths]
    return FolderSource([path for path, _ in pairs], [number for _, number in pairs], channels)


def _skipped_note(root: Path, skipped: list[str]) -> tuple[str, ...]:
    if not skipped:
        return ()
    names = ", ".join(os.path.relpath(path, root) for path in skipped[:3]) + (", ..." if skipped[3:] else "")
    return (f"{len(skipped)} {'file' if len(skipped) == 1 else 'files'} skipped, empty or no image: {names}",)


def open_tfds(name: str, config: Data) -> Parts:
    """What TFDS has prepared as ArrayRecord: read without TensorFlow and without the dataset's own code."""
    import tensorflow_datasets as tfds  # slow to import

    data_dir = os.path.expanduser(config.dir or tfds.core.constants.DATA_DIR)
    command = f"tfds build {name} --file_format=array_record --data_dir={data_dir}"
    try:
        # Unlike tfds.builder, this looks at the disk alone: it never asks the network for metadata.
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except ValueError as error:
        raise UserError(f"{config.name} is not prepared in {data_dir}: {command}") from error
    info = builder.info
    if "train" not in info.splits:
        raise UserError(f"{config.name} has no split 'train'; it has: {', '.join(info.splits)}")
    eval_split = _choose_split(config, list(info.splits))
    image_key, label_key = (info.supervised_keys or ("image", "label"))[:2]
    features = dict(info.features.items())
    image, label = features.get(image_key), features.get(label_key)
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"{config.name} is not for image classification: its features are {', '.join(features)}")

    names = ("train", eval_split)
    encoded = {image_key: tfds.decode.SkipDecoding()}
    try:
        splits = [builder.as_data_source(split, decoders=encoded) for split in names]
    except NotImplementedError as error:
        form = info.file_format.value
        raise UserError(f"{config.name} is prepared as {form}, not array_record: {command} --overwrite") from error
    channels = image_channels(io.BytesIO(splits[0][0][image_key]), f"0 of {config.name} train")
    train, evaluation = (
        TfdsSource(records, image_key, label_key, channels, f"{config.name} {split}")
        for records, split in zip(splits, names, strict=True)
    )
    return train, evaluation, tuple(label.names), ()


def _choose_split(config: Data, splits: list[str]) -> str:
    """The evaluation split: the one asked for, or the first usual one, among `splits`."""
    wanted = EVAL_SPLITS if config.eval_split is None else (config.eval_split,)
    for name in wanted:
        if name in splits:
            return name
    others = f"it has: {', '.join(splits)}" if splits else "it has none"
    raise UserError(f"{config.name} has no split {' or '.join(wanted)} to evaluate on; {others}")
