"""Choose the evaluation split of a dataset, or hold out a part of its training images."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from train.config import Data
from train.errors import UserError, shortened

T = TypeVar("T")

EVAL_SPLITS = ("val", "validation", "test")
OTHER_NAMES = {"training": "train", "valid": "val", "dev": "val", "testing": "test"}
OF_SPLIT = re.compile(r"(?<![a-z])(train|training|val|valid|validation|test)(?![a-z])")

SPLIT = 0.8  # share of the images for training, if no split is for evaluation
NAMED = 5  # classes named in a note
HELD_OUT = 0.1  # share of the images for evaluation, if there is no split for it and labels are not needed


def choose_split(config: Data, splits: Sequence[str], *, required: bool = True) -> tuple[str | None, tuple[str, ...]]:
    """Choose the evaluation split.

    Args:
        config: The configured split, or share of training images that are not held out.
        splits: Names of the splits that exist, other than "train".
        required: Whether there must be one.

    Returns:
        The configured split, otherwise the first of EVAL_SPLITS that exists, and notes for the user. None if a part of
        the training images is to be held out: with `config.split`, or if there is no split and `required` is False.

    Raises:
        UserError: If the configured or the required split does not exist, or a split for validation that
            `config.split` would leave unused does.
    """
    if config.split is not None:
        if named := {*EVAL_SPLITS[:2]}.intersection(splits):
            raise UserError(
                f"--data.split is {config.split}, but {config.name} has the split {min(named)}: leave one of them out"
            )
        return None, ()
    wanted = EVAL_SPLITS if config.eval_split is None else (config.eval_split,)
    for name in wanted:
        if name in splits:
            return name, _note_on_test() if (name, config.eval_split) == ("test", None) else ()
    if not required and config.eval_split is None:
        return None, ()
    others = f"it has: {', '.join(splits)}" if splits else "all its images are for training"
    raise UserError(f"{config.name} has no split {' or '.join(wanted)} to evaluate on; {others}")


def _note_on_test() -> tuple[str, ...]:
    return (
        "evaluations on the split test also choose the best checkpoint, so its accuracy there is optimistic; "
        "--data.split=0.9 evaluates on a tenth of the training images instead, and leaves test for the end",
    )


def divide(groups: Sequence[Sequence[T]], share: float) -> list[tuple[list[T], list[T]]]:
    """Divide each group of examples into two, for training and for evaluation.

    The choice is random, but always the same. At least one example of each group is for training.

    Args:
        groups: The examples of each class, or a single group.
        share: Share of the examples for training.
    """
    counts = [min(len(group) - 1, max(1, round((1 - share) * len(group)))) for group in groups]
    return [hold_out(group, max(0, count)) for group, count in zip(groups, counts, strict=True)]


def hold_out(group: Sequence[T], count: int) -> tuple[list[T], list[T]]:
    """Divide a group: a fixed random choice of `count` is for evaluation. Both keep their order."""
    drawn = set(np.random.default_rng(0).permutation(len(group))[:count].tolist())
    return [x for i, x in enumerate(group) if i not in drawn], [x for i, x in enumerate(group) if i in drawn]


def held_out_note(count: int) -> str:
    """The note for data without an evaluation split."""
    return f"no split {' or '.join(EVAL_SPLITS)}: {count_images(count)} held out for evaluation"


def divided_note(count: int, share: float, of: str) -> str:
    """The note for `count` images held out by `divide`; `of` is each class, or all images."""
    return f"{count_images(count)} held out for evaluation, {1 - share:.0%} of {of} (--data.split)"


def single_note(counts: Mapping[str, int]) -> tuple[str, ...]:
    """The note on classes with one image, which `divide` leaves for training; () if there are none.

    Args:
        counts: Number of images by class.
    """
    if not (names := [name for name, count in counts.items() if count == 1]):
        return ()
    has = "1 class has one image" if len(names) == 1 else f"{len(names):,} classes have one image each"
    listed = ", ".join(map(shortened, names[:NAMED])) + (", ..." if names[NAMED:] else "")
    return (f"{has}, which is for training only: {listed}",)


def count_images(count: int) -> str:
    """Format a number of images."""
    return f"{count:,} {'image' if count == 1 else 'images'}"


def split_name(text: str) -> str:
    """The name of a split in lower case, in the form that `choose_split` expects."""
    name = text.strip().lower()
    return OTHER_NAMES.get(name, name)


def split_of(file: Path) -> str:
    """The split that the name of a file contains, such as train-000.tar, or that of its folder; otherwise "train"."""
    found = OF_SPLIT.search(file.stem.lower()) or OF_SPLIT.fullmatch(file.parent.name.lower())
    return split_name(found[1]) if found else "train"
