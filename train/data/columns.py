"""Choose the columns of images, labels and splits in a table: by the options, otherwise by names and values."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from train.config import Data
from train.data.targets import truth_of
from train.errors import UserError, shortened

IMAGE_NAMES = ("image", "img", "path", "file", "filename", "filepath", "image_path", "file_path", "image_file")
IMAGE_NAMES += ("img_path", "file_name", "image_name", "image_id")
LABEL_NAMES = {
    "class": ("label", "class", "target", "labels", "class_name", "label_name", "category", "fine_label", "cls"),
    "multilabel": ("labels", "label", "tags", "classes", "class", "target", "targets"),
    "regression": ("target", "value", "label", "score", "y"),
}
SPLIT_NAMES = ("split", "subset")
INDEX = re.compile(r"|id|index|unnamed:?_\d+|__index_level_\d+__")  # columns that number the rows


class Chosen(NamedTuple):
    """The columns of a table, and notes on those that were inferred. `labels` is empty if they are not needed."""

    image: str
    labels: tuple[str, ...]
    notes: tuple[str, ...]


def choose_columns(
    config: Data, columns: Mapping[str, Sequence[Any]], images: Collection[str], *, labels: bool = True
) -> Chosen:
    """Choose the columns of images and labels.

    Args:
        config: Names the columns, the target, and the data for messages.
        columns: Values of some rows by column, without the column of splits.
        images: Columns that may be those of images, by their values.
        labels: Whether labels are needed.

    Raises:
        UserError: If a configured column does not exist, or a column cannot be inferred.
    """
    for names in ((config.image_column,), config.label_columns):
        if missing := [name for name in names if name is not None and name not in columns]:
            raise UserError(f"{config.name} has no column named {_listed(missing)}; it has: {_listed(columns)}")
    image = config.image_column or named(images, IMAGE_NAMES) or named(columns, IMAGE_NAMES)
    image = image or (next(iter(images)) if len(images) == 1 else None)
    if image is None:
        raise UserError(f"which column has the images? --data.image-column names one of {_listed(columns)}")
    if image in config.label_columns or len({*config.label_columns}) < len(config.label_columns):
        raise UserError(f"--data.label-columns is {' '.join(config.label_columns)}: expected other columns, each once")
    chosen = config.label_columns or _inferred(config, {n: v for n, v in columns.items() if n not in {image, *images}})
    if not labels:
        chosen = ()
    inferred = [f"images in the column {image!r}"] if config.image_column is None else []
    if chosen and not config.label_columns:
        inferred.append(f"labels in {', '.join(map(repr, chosen[:5]))}{', ...' if chosen[5:] else ''}")
    elif labels and not chosen:
        raise UserError(f"which column has the labels? --data.label-columns names one or more of {_listed(columns)}")
    note = f"{' and '.join(inferred)} (--data.image-column and --data.label-columns name others)"
    return Chosen(image, chosen, (note,) if inferred else ())


def _inferred(config: Data, columns: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """Label columns: by name, otherwise all whose values fit the target, or the only one."""
    found = named(columns, LABEL_NAMES[config.target])
    fits = {"class": None, "multilabel": _is_truth, "regression": _is_number}[config.target]
    others = tuple(name for name in columns if not INDEX.fullmatch(_plain(name)))
    if fits is None:
        return (found,) if found else others[:1] if len(others) == 1 else ()
    if found and not (config.target == "multilabel" and all(map(_is_truth, columns[found]))):
        return (found,)
    return tuple(name for name in others if all(map(fits, columns[name])))


def named(columns: Collection[str], wanted: Sequence[str]) -> str | None:
    """The column with the first of the wanted names, in any case."""
    plain = {_plain(name): name for name in columns}
    return next((plain[name] for name in wanted if name in plain), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _is_truth(value: Any) -> bool:
    return truth_of(value) is not None


def _is_number(value: Any) -> bool:
    """Whether a value is a number or its text. NaN is one: where it is a missing value, `encode` names the row."""
    if not isinstance(value, int | float | str):
        return False
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def _listed(columns: Collection[str]) -> str:
    names = [shortened(name, 40) for name in columns]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")
