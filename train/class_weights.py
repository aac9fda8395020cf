"""The weights of classes and labels in the loss, `--class-weights`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from train.errors import UserError, shortened

if TYPE_CHECKING:
    import numpy as np

BALANCED = "balanced"
EXPECTED = f"{BALANCED}, NAME=WEIGHT ..., or a number for each class, all above 0"


def check_class_weights(given: Sequence[str], target: str) -> None:
    """Raises UserError unless `given` is `balanced`, or all are NAME=WEIGHT, or all are numbers; all above 0."""
    if target == "regression":
        raise UserError("--class-weights is set with --data.target=regression, which has no classes")
    named = ["=" in text for text in given]
    if list(given) != [BALANCED] and any(named) != all(named):
        raise UserError(f"--class-weights {shortened(' '.join(given))}: expected {EXPECTED}")
    if list(given) != [BALANCED]:
        for text in given:
            _number(text)


def class_weights(
    given: Sequence[str], target: str, class_names: Sequence[str], labels: np.ndarray | None
) -> tuple[float, ...]:
    """The weight of each class.

    Args:
        given: The option, as `check_class_weights` accepts it; empty: no weights.
        target: `--data.target`.
        class_names: Names of the classes or labels.
        labels: The targets of all training images, int (n,) or of 0 and 1 (n, k), for `balanced`.

    Returns:
        A weight for each class or label; () without weights.

    Raises:
        UserError: For an unknown name, or another number of weights.
    """
    if list(given) == [BALANCED]:
        return balanced(labels, len(class_names))
    if not given or "=" not in given[0]:
        if given and len(given) != len(class_names):
            raise UserError(f"--class-weights has {len(given)} numbers; the data has {len(class_names)} classes")
        return tuple(map(_number, given))
    weights = dict.fromkeys(class_names, 1.0)
    for text in given:
        name = text.rpartition("=")[0]
        if name not in weights:
            raise UserError(f"--class-weights {shortened(text)}: the data has no class {shortened(name)}")
        weights[name] = _number(text)
    return tuple(weights.values())


def balanced(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """Weights that give every class the same part in the loss, and both values of a label.

    For classes as scikit-learn's `compute_class_weight`: images / (classes that occur x images of the class). For
    labels as torch suggests for `pos_weight`: images without the label / images with it. A class that never occurs, and
    a label that is everywhere or nowhere, have the weight 1.
    """
    import numpy as np  # not at the top: `--help` and wrong options do not need it

    if labels.ndim == 2:
        present = labels.sum(axis=0)
        weights = (len(labels) - present) / np.maximum(present, 1)
        return tuple(float(w) if 0 < n < len(labels) else 1.0 for w, n in zip(weights, present, strict=True))
    counts = np.bincount(labels, minlength=classes)
    occurring = int((counts > 0).sum())
    return tuple(len(labels) / (occurring * int(n)) if n else 1.0 for n in counts)


def _number(text: str) -> float:
    """The weight in NAME=WEIGHT or WEIGHT."""
    try:
        weight = float(text.rpartition("=")[2])
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"--class-weights {shortened(text)}: expected {EXPECTED}")
    return weight
