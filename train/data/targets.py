"""Encode the values of label columns as targets: a class, several labels, or numbers."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from train.config import Data
from train.errors import UserError, shortened

MOST_CLASSES = 1_000_000
TRUTH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "true": 1, "false": 0}
SEPARATORS = re.compile(r"[;|]")


class Columns(NamedTuple):
    """The label columns of a split.

    Attributes:
        values: The values by column; a column of classes may also have lists.
        names: Names of the examples, for messages.
    """

    values: Mapping[str, Sequence[Any]]
    names: Sequence[str]


def encode(
    config: Data, splits: Sequence[Columns], known: Sequence[str] | None = None
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Encode the label columns of all splits.

    Args:
        config: `target` says what is learned.
        splits: The columns; the first split is for training.
        known: Names of all classes or labels in order; by default those of the training split, sorted.

    Returns:
        The targets of each split: int32 (n,) classes, float32 (n, k) of 0 and 1 for labels, float32 (n, m) numbers.
        And the names of the classes, labels, or number columns.

    Raises:
        UserError: For a value that is missing or unsuitable, and for a class that only an evaluation split has.
    """
    if config.target == "regression":
        return [_numbers(split, _number) for split in splits], tuple(splits[0].values)
    (column, *others) = splits[0].values
    if config.target == "multilabel" and others:
        return [_numbers(split, _truth) for split in splits], tuple(splits[0].values)
    if others:
        raise UserError(f"--data.label-columns has {len(others) + 1} columns: expected one for --data.target=class")
    parse = _class if config.target == "class" else _labels
    parsed = [[parse(*pair) for pair in zip(split.values[column], split.names, strict=True)] for split in splits]
    class_names = tuple(known or _sorted({name for row in parsed[0] for name in row}))
    if len(class_names) > MOST_CLASSES:
        raise UserError(f"{config.name} has {len(class_names):,} classes: expected at most {MOST_CLASSES:,}")
    numbers = {name: number for number, name in enumerate(class_names)}
    for split, rows in zip(splits, parsed, strict=True):
        for name, row in zip(split.names, rows, strict=True):
            if unknown := [label for label in row if label not in numbers]:
                raise UserError(f"{name} has the label {shortened(unknown[0])}, which no training image has")
    if config.target == "class":
        return [np.array([numbers[name] for (name,) in rows], np.int32) for rows in parsed], class_names
    return [_marked(rows, numbers) for rows in parsed], class_names


def _marked(rows: Sequence[Sequence[str]], numbers: Mapping[str, int]) -> np.ndarray:
    """float32 (n, k): 1 for each label of a row."""
    targets = np.zeros((len(rows), len(numbers)), np.float32)
    for target, row in zip(targets, rows, strict=True):
        target[[numbers[label] for label in row]] = 1
    return targets


def _sorted(names: set[str]) -> list[str]:
    """Whole numbers by value, other names alphabetically."""
    are_numbers = all(re.fullmatch(r"-?\d{1,18}", name, re.ASCII) for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if are_numbers else sorted(names)


def _numbers(split: Columns, parse) -> np.ndarray:
    columns = [
        [parse(value, name, column) for value, name in zip(values, split.names, strict=True)]
        for column, values in split.values.items()
    ]
    return np.array(columns, np.float32).T.reshape(len(split.names), len(columns))


def _number(value: Any, name: str, column: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):  # text, and whole numbers that no float can hold
        number = math.nan
    if not abs(number) <= np.finfo(np.float32).max:
        raise UserError(f"{column} of {name} is {_shown(value)}: expected a number")
    return number


def truth_of(value: Any) -> int | None:
    """0 or 1 for a number, a truth value, or their text, such as "TRUE"; otherwise None."""
    return TRUTH.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None


def _truth(value: Any, name: str, column: str) -> int:
    if (truth := truth_of(value)) is None:
        raise UserError(f"{column} of {name} is {_shown(value)}: expected 0 or 1")
    return truth


def _class(value: Any, name: str) -> tuple[str]:
    """The name of a class, for text and whole numbers."""
    if isinstance(value, float) and math.isfinite(value) and value != int(value):
        raise UserError(f"the label of {name} is {value}: expected a class; --data.target=regression learns numbers")
    if isinstance(value, list | tuple):
        raise UserError(f"{name} has {len(value)} labels: expected one; --data.target=multilabel learns several")
    return (_name(value, name),)


def _labels(value: Any, name: str) -> tuple[str, ...]:
    """The names in a list, or in a text such as "cat;dog"; an empty text has none."""
    if isinstance(value, str):
        value = [part for part in SEPARATORS.split(value) if part.strip()]
    if not isinstance(value, list | tuple):
        value = (value,)
    return tuple(_name(part, name) for part in value)


def _name(value: Any, name: str) -> str:
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    text = value.strip() if isinstance(value, str) else shortened(value) if isinstance(value, bool | int) else ""
    if not text:
        raise UserError(f"the label of {name} is {_shown(value)}: expected text or a whole number")
    return text


def _shown(value: Any) -> str:
    return "missing" if value is None or value == "" or value != value else shortened(value, 50)
