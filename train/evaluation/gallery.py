"""Choose the images to show: the most confident mistakes, and typical successes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.evaluation.metrics import THRESHOLD

MISTAKES, SUCCESSES = 12, 8


class Shown(NamedTuple):
    """An image to show.

    Attributes:
        row: Its row in the predictions.
        true: Its true class, labels or numbers, as text.
        predicted: What is predicted.
        detail: The confidence or the error, as text.
    """

    row: int
    true: str
    predicted: str
    detail: str


def choose(
    target: str, values: np.ndarray, targets: np.ndarray, names: Sequence[str]
) -> tuple[list[Shown], list[Shown]]:
    """Choose the worst mistakes, the worst first, and typical successes.

    Args:
        target: "class", "multilabel" or "regression".
        values: Probabilities or numbers, (n, k).
        targets: True classes (n,), labels or numbers (n, k).
        names: Names of the k classes, labels or columns.
    """
    return {"class": _classes, "multilabel": _labels, "regression": _numbers}[target](values, targets, names)


def _classes(values, targets, names):
    predicted, confidence = values.argmax(axis=1), values.max(axis=1)
    example = lambda row: Shown(int(row), names[targets[row]], names[predicted[row]], f"{confidence[row]:.1%}")
    right = np.flatnonzero(predicted == targets)
    wrong = np.flatnonzero(predicted != targets)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    typical = _typical(right, confidence)
    _, firsts = np.unique(targets[typical], return_index=True)  # one of each class
    return [*map(example, wrong)], [*map(example, typical[np.sort(firsts)][:SUCCESSES])]


def _labels(values, targets, names):
    error = np.abs(values - targets).max(axis=1)
    listed = lambda row, found: ", ".join(names[i] for i in np.flatnonzero(found[row])) or "none"
    predicted = values >= THRESHOLD

    def example(row):
        worst = int(np.abs(values[row] - targets[row]).argmax())
        detail = f"{names[worst]} {values[row, worst]:.1%}"
        return Shown(int(row), listed(row, targets > 0), listed(row, predicted), detail)

    right = np.flatnonzero((predicted == (targets > 0)).all(axis=1))
    wrong = np.setdiff1d(np.arange(len(values)), right)
    wrong = wrong[np.argsort(-error[wrong], kind="stable")][:MISTAKES]
    return [*map(example, wrong)], [*map(example, _typical(right, error)[:SUCCESSES])]


def _numbers(values, targets, names):
    scale = np.maximum(targets.std(axis=0), 1e-12)
    error = (np.abs(values - targets) / scale).max(axis=1)
    listed = lambda row: ", ".join(f"{name} {value:.4g}" for name, value in zip(names, row, strict=True))
    example = lambda row: Shown(int(row), listed(targets[row]), listed(values[row]), f"{error[row]:.2f}")
    order = np.argsort(-error, kind="stable")
    typical = _typical(np.arange(len(error)), error)
    return [*map(example, order[:MISTAKES])], [*map(example, typical[:SUCCESSES])]


def _typical(rows: np.ndarray, score: np.ndarray) -> np.ndarray:
    """`rows` in the order of the distance of their score from the median."""
    if not len(rows):
        return rows
    return rows[np.argsort(np.abs(score[rows] - np.median(score[rows])), kind="stable")]
