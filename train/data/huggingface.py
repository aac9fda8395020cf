"""Datasets of Hugging Face: from the hub, from Parquet files, or from a folder that `save_to_disk` wrote."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config import Data
from train.data.columns import choose_columns
from train.data.examples import Examples, open_examples
from train.data.sources import Parts
from train.data.splits import split_name, split_of
from train.data.transforms import Unreadable
from train.errors import UserError, one_line
from vit_jax.images import File

SAMPLE = 1000  # rows by which columns are inferred


@dataclasses.dataclass(frozen=True)
class StoredImages(Sequence):
    """The encoded images in a column, read on access. An image is bytes, or the path of a file."""

    rows: Any  # datasets.Dataset with the column alone
    column: str
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> File:
        try:
            value = self.rows[index][self.column]
        except Exception as error:  # pyarrow raises many types
            raise Unreadable(f"cannot read the image {index} of {self.name}: {one_line(error)}") from error
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if isinstance(content, bytes) and content:
            return io.BytesIO(content)
        if not path:
            raise Unreadable(f"cannot read the image {index} of {self.name}: it is missing")
        return path


@dataclasses.dataclass(frozen=True)
class RowNames(Sequence):
    """Names of rows."""

    name: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> str:
        return f"{range(self.count)[index]} of {self.name}"


def open_huggingface(name: str, config: Data, *, labels: bool = True) -> Parts:
    """Open a dataset of Hugging Face.

    Args:
        name: ORG/NAME on the hub, or ORG/NAME:CONFIGURATION; a .parquet file, a folder of them (train-*.parquet,
            test-*.parquet), or a folder that `save_to_disk` wrote.
        config: Its columns, target and splits.
        labels: Whether labels are needed.

    Raises:
        UserError: If the dataset cannot be loaded, or has no column of images or labels.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError('--data=hf: needs the package datasets: pip install "vit-jax[data]"') from error
    splits = _load(datasets, name, config)
    first = next(iter(splits.values()))
    with _as_user_error(config):
        images = [column for column, feature in first.features.items() if _is_image(datasets, feature)]
        others = first.remove_columns(images)[:SAMPLE]
    if not images:
        raise UserError(f"{config.name} has no column of images: its columns are {', '.join(first.column_names)[:200]}")
    if config.image_column in first.column_names and config.image_column not in images:
        with_images = ", ".join(images)[:200]
        raise UserError(f"--data.image-column is {config.image_column}, which has no images; {with_images} has")
    chosen = choose_columns(config, dict.fromkeys(images, ()) | others, images, labels=labels)
    last = Path(name).name  # a fingerprint does not depend on the folder
    with _as_user_error(config):
        examples = {split: _examples(datasets, rows, f"hf:{last} {split}", chosen) for split, rows in splits.items()}
        known = _class_names(datasets, first.features, chosen.labels)
    return open_examples(config, examples, labels=labels, class_names=known, notes=chosen.notes)


def _load(datasets: Any, name: str, config: Data) -> Mapping[str, Any]:
    """The splits of a dataset."""
    path = Path(name).expanduser()
    with _as_user_error(config):
        if path.is_dir() and any((path / file).exists() for file in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(path))
        elif path.exists():
            loaded = datasets.DatasetDict.from_parquet(_parquet_files(path))  # `load_dataset` would use the network
        elif name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"there is no file or folder {path}")
        else:
            repository, _, configuration = name.partition(":")
            loaded = datasets.load_dataset(repository, configuration or None)
        splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    splits = {split_name(str(split)): rows for split, rows in splits.items()}
    if empty := [split for split, rows in splits.items() if not len(rows)]:
        raise UserError(f"{config.name} has no images in the split {empty[0]}")
    return splits


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """A Parquet file, or those below a folder, by split."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise UserError(f"{path} has neither Parquet files nor what save_to_disk writes")
    if files[0].suffix.lower() != ".parquet":
        raise UserError(f"{path} cannot be read: expected a .parquet file or a folder")
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault("train" if path.is_file() else split_of(file), []).append(str(file))
    return splits


def _examples(datasets: Any, rows: Any, name: str, chosen) -> Examples:
    feature = rows.features[chosen.image]
    if isinstance(feature, datasets.Image):
        rows = rows.cast_column(chosen.image, datasets.Image(decode=False))
    images = StoredImages(rows.select_columns([chosen.image]), chosen.image, name)
    values = rows.select_columns(list(chosen.labels))[:] if chosen.labels else {}
    values = {column: _named(datasets, rows.features[column], values[column]) for column in chosen.labels}
    return Examples(images, RowNames(name, len(rows)), values)


def _is_image(datasets: Any, feature: Any) -> bool:
    """Whether a column has images: declared, bytes, or bytes with a path."""
    if isinstance(feature, dict):
        feature = feature.get("bytes")
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _class_label(datasets: Any, feature: Any) -> Any:
    """The ClassLabel of a column of classes, or of lists of them; otherwise None."""
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, datasets.ClassLabel) else None


def _class_names(datasets: Any, features: Any, columns: tuple[str, ...]) -> tuple[str, ...] | None:
    label = _class_label(datasets, features[columns[0]]) if len(columns) == 1 else None
    return tuple(label.names) if label else None


def _named(datasets: Any, feature: Any, values: list) -> list:
    """Values with the names of classes in place of their numbers; None for the number of no class."""
    label = _class_label(datasets, feature)
    if label is None:
        return values
    named = lambda number: label.names[number] if number is not None and 0 <= number < len(label.names) else None
    return [list(map(named, value)) if isinstance(value, list) else named(value) for value in values]


@contextlib.contextmanager
def _as_user_error(config: Data) -> Iterator[None]:
    """Convert errors of `datasets` to UserError: it raises many types, and a cause may say more than the last one."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        raise UserError(f"{config.name} cannot be loaded: {one_line(cause)}") from error
