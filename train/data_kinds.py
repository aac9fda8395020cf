"""The kinds of data that `--data` names. This module avoids slow imports, for `--help` and errors in options."""

import dataclasses
import importlib
from collections.abc import Callable

from train.config import Data
from train.errors import UserError, shortened


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes:
        written: The form of `--data`, such as folder:PATH.
        opener: MODULE:FUNCTION, called as function(text after the colon, config, labels=...), which returns `Parts`.
        about: Description for `--list-data`.
        options: Fields of `Data` that only some kinds use: those in OPTIONAL, and "target".
        is_path: Whether a path follows the colon.
    """

    written: str
    opener: str
    about: str
    options: tuple[str, ...] = ()
    is_path: bool = False

    def load_opener(self) -> Callable:
        """Import the function that opens data of this kind."""
        module, _, function = self.opener.partition(":")
        return getattr(importlib.import_module(module), function)


OPTIONAL = ("dir", "split", "image_column", "label_columns")
COLUMNS = ("split", "image_column", "label_columns", "target")

KINDS = {
    "digits": Kind(
        "digits",
        "train.data.sources:open_digits",
        "1,797 scans of handwritten digits, 8x8 pixels, included; the default",
    ),
    "folder": Kind(
        "folder:PATH",
        "train.data.folder:open_folder",
        "images in PATH/CLASS/, or in PATH/train/CLASS/ and PATH/val/CLASS/ or PATH/test/CLASS/",
        options=("split",),
        is_path=True,
    ),
    "table": Kind(
        "table:FILE",
        "train.data.table:open_table",
        "images that a .csv, .tsv or .parquet file lists with their labels",
        options=COLUMNS,
        is_path=True,
    ),
    "hf": Kind(
        "hf:NAME",
        "train.data.huggingface:open_huggingface",
        "a dataset of Hugging Face, a .parquet file, a folder of them, or a folder that save_to_disk wrote",
        options=COLUMNS,
        is_path=True,
    ),
    "wds": Kind(
        "wds:SHARDS",
        "train.data.webdataset:open_shards",
        "tar shards of WebDataset: a folder, or a pattern such as train-{000..009}.tar",
        options=COLUMNS,
        is_path=True,
    ),
    "array": Kind(
        "array:FILE",
        "train.data.arrays:open_arrays",
        "arrays of images and labels: an .npz file, or a folder of .npy files",
        options=("split", "target"),
        is_path=True,
    ),
    "tfds": Kind(
        "tfds:NAME", "train.data.tfds:open_tfds", "a dataset that TFDS has prepared", options=("dir", "split")
    ),
}


def parse_kind(name: str) -> tuple[Kind, str]:
    """The kind of `--data=name`, and the text after the colon. Raises UserError for any other name."""
    prefix, _, rest = name.partition(":")
    kind = KINDS.get(prefix)
    if kind is None or not (rest if ":" in kind.written else name == kind.written):
        *others, last = (kind.written for kind in KINDS.values())
        raise UserError(f"unknown data {name!r}: expected {', '.join(others)} or {last}")
    return kind, rest


def check_data(config: Data) -> None:
    """Raises UserError for an unknown kind of data, and for options that it does not use or that conflict."""
    kind, _ = parse_kind(config.name)
    if config.target != "class" and "target" not in kind.options:
        raise UserError(f"--data.target is {config.target}, but {shortened(config.name)} has only classes")
    check_normalisation(config)
    if config.random_crop == "simple" and config.min_crop < 1:
        raise UserError(f"--data.min-crop is {config.min_crop:g} with --data.random-crop=simple: pass one of them")
    if config.split is not None and config.eval_split is not None:
        both = f"--data.split is {config.split} and --data.eval-split is {config.eval_split}"
        raise UserError(f"{both}: pass one of them")
    for field in OPTIONAL:
        if (value := getattr(config, field)) != getattr(Data, field) and field not in kind.options:
            users = " or ".join(f"--data={other.written}" for other in KINDS.values() if field in other.options)
            raise UserError(f"--data.{field.replace('_', '-')} is {value!r}; it is used only with {users}")


def check_normalisation(config: Data) -> None:
    """Raises UserError for a mean or deviation that integer pixels cannot have."""
    for field, least, most in (("mean", 0, 1), ("std", 1e-6, 10)):
        values = getattr(config, field) or ()
        if config.pixels != "float32" and not all(least <= value <= most for value in values):
            allowed = f"each a number from {least:g} to {most}, or with --data.pixels=float32 any"
            raise UserError(f"--data.{field} is {values}; it must be one or more values, {allowed}")


def with_path(name: str, change: Callable[[str], str]) -> str:
    """`name` of data with its path changed, if it has one."""
    prefix, _, path = name.partition(":")
    return f"{prefix}:{change(path)}" if prefix in KINDS and KINDS[prefix].is_path and path else name
