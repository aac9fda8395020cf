"""Images that a table lists with their labels: CSV, TSV or Parquet."""

import csv
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.progress

from train.config import Data
from train.data.columns import SPLIT_NAMES, choose_columns, named
from train.data.examples import Examples, open_examples
from train.data.sources import Parts
from train.data.splits import count_images, split_name
from train.errors import UserError, one_line_errors, shortened
from vit_jax.images import SUFFIXES
from vit_jax.printable import counted

SAMPLE = 1000  # rows by which columns are inferred

Table = Mapping[str, Sequence[Any]]


def open_table(path: str, config: Data, *, labels: bool = True) -> Parts:
    """Open the images of a table.

    Args:
        path: A .csv, .tsv or .parquet file. Its paths of images are absolute, or relative to its folder. A column named
            "split" divides it.
        config: Its columns, target and splits.
        labels: Whether labels are needed.

    Raises:
        UserError: If the table cannot be read, lacks a column, or lists files that do not exist.
    """
    path = Path(path).expanduser()
    table = read_table(path)
    of_splits = named(table, SPLIT_NAMES)
    sample = {name: values[:SAMPLE] for name, values in table.items() if name != of_splits}
    images = [name for name, values in sample.items() if all(map(_is_image_path, values))]
    chosen = choose_columns(config, sample, images, labels=labels)
    names = table[chosen.image]
    files = _existing_files(path, names)
    splits = [split_name(str(value)) for value in table[of_splits]] if of_splits else ["train"] * len(files)
    pick = lambda values, split: [value for value, own in zip(values, splits, strict=True) if own == split]
    examples = {
        split: Examples(pick(files, split), pick(names, split), {n: pick(table[n], split) for n in chosen.labels})
        for split in dict.fromkeys(splits)
    }
    return open_examples(config, examples, labels=labels, notes=chosen.notes)


def read_table(path: Path) -> Table:
    """Read a table: its columns by name. Those of CSV and TSV are text. Raises UserError."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet"):
        raise UserError(f"{path} is not a table: expected a .csv, .tsv or .parquet file")
    with one_line_errors(f"{path} cannot be read"):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path} is not a regular file")
        try:
            table = _read_parquet(path) if suffix == ".parquet" else _read_text(path, suffix)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not encoded in UTF-8 (byte {error.start:,})") from error
    if not table or not len(next(iter(table.values()))):
        raise UserError(f"{path} has no rows")
    return table


def _read_text(path: Path, suffix: str) -> Table:
    """Read CSV, separated by commas, semicolons or tabs as its first line is, or TSV."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        separator = "\t" if suffix == ".tsv" else max(",;\t", key=header.count)
        file.seek(0)
        rows = csv.reader(file, delimiter=separator, strict=True)
        columns = next(rows, [])
        if repeated := {name for name in columns if columns.count(name) > 1}:
            raise UserError(f"{path} has two columns named {shortened(min(repeated))}")
        values = []
        for row in rows:
            if row and len(row) != len(columns):
                raise UserError(
                    f"line {rows.line_num} of {path} has {counted(len(row), 'value')}: expected {len(columns)}"
                )
            values += [row] if row else []
    return {name: column for name, *column in zip(columns, *values, strict=True)}


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f'{path}: Parquet needs pyarrow: pip install "vit-jax[data]"') from error
    table = pyarrow.parquet.read_table(path, partitioning=None)
    if len({*table.column_names}) < len(table.column_names):
        raise UserError(f"{path} has two columns of the same name")
    is_text = lambda kind: pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
    if not any(is_text(field.type) or pyarrow.types.is_dictionary(field.type) for field in table.schema):
        raise UserError(f"{path} has no column of paths; --data=hf:{path} reads images that are stored in the file")
    return {name: table[name].to_pylist() for name in table.column_names}


def _is_image_path(value: Any) -> bool:
    return isinstance(value, str) and os.path.splitext(value)[1].lower() in SUFFIXES


def _existing_files(table: Path, names: Sequence[Any]) -> list[str]:
    """The paths of images. Raises UserError if any is missing."""
    folder, files, missing = table.parent, [], []
    for name in rich.progress.track(names, "Looking for the images", disable=len(names) < 10_000):
        if not isinstance(name, str) or not name or "\0" in name:
            raise UserError(f"{table} has {shortened(name)} in place of the path of an image")
        files.append(os.path.join(folder, os.path.expanduser(name)))
        if not os.path.isfile(files[-1]):
            missing.append(files[-1])
    if missing:
        verb = "does" if len(missing) == 1 else "do"
        raise UserError(f"{count_images(len(missing))} of {table} {verb} not exist, such as {missing[0]}")
    return files
