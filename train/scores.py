"""Metrics that need the predictions for all evaluation images, and the metric that picks the best checkpoint."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from train.evaluation.metrics import multilabel_metrics, regression_metrics

if TYPE_CHECKING:
    from train.build import DataInfo

# The first that a run has picks its best checkpoint; 1 if more is better, otherwise -1. R2 comes before the mean
# absolute error because its mean over columns does not depend on their units; it is undefined if no column varies.
BEST_BY = {"mean_average_precision": 1, "accuracy": 1, "r2": 1, "mae": -1, "loss": -1}
NAMES = {
    "mean_average_precision": "mean average precision",
    "f1_micro": "F1 (micro)",
    "f1_macro": "F1 (macro)",
    "label_accuracy": "accuracy of labels",
    "r2": "R2",
    "mae": "mean absolute error",
    "rmse": "RMSE",
    "lr": "learning rate",
}
SHARES = ("accuracy", "mean_average_precision", "f1_micro", "f1_macro")


def chosen_by(metrics: Mapping[str, float]) -> str:
    """The metric of an evaluation that picks the best checkpoint."""
    return next(name for name in BEST_BY if name in metrics)


def score(metrics: Mapping[str, float]) -> float:
    """The score of an evaluation, higher is better.

    Checkpoints between evaluations have no metrics; their score is lower than any other.
    """
    if not metrics:
        return -math.inf
    name = chosen_by(metrics)
    return BEST_BY[name] * metrics[name]


def is_share(name: str) -> bool:
    """Whether a metric is from 0 to 1, and shown as a percentage."""
    return name in SHARES or "accuracy" in name  # also that of labels, and of each head of distillation


def metrics_of_all(outputs: np.ndarray, targets: np.ndarray, info: "DataInfo") -> dict[str, float]:
    """Metrics of the outputs of a model for all evaluation images.

    Args:
        outputs: Logits of labels, or standardised numbers, (n, k).
        targets: The targets of the same images, (n, k).
        info: The dataset.

    Returns:
        For labels, "mean_average_precision", "f1_micro" and "f1_macro"; for numbers, in their own units, "r2", "mae"
        and "rmse", each a mean over the columns. Without those that are undefined.
    """
    if info.target == "multilabel":
        found = multilabel_metrics(1 / (1 + np.exp(-outputs.astype(np.float64))), targets, info.class_names)
        names = ("mean_average_precision", "f1_micro", "f1_macro")
    else:
        raw = [in_units(values.astype(np.float64), info) for values in (outputs, targets)]
        found = regression_metrics(*raw, info.class_names)
        names = ("r2", "mae", "rmse")
    return {name: found[name] for name in names if found[name] is not None}


def in_units(standardised, info: "DataInfo"):
    """Standardised numbers (n, m) in their own units; the types of arrays are kept."""
    mean, std = (np.asarray(values, standardised.dtype)[None] for values in (info.target_mean, info.target_std))
    return standardised * std + mean


def show(metrics: Mapping[str, float]) -> str:
    """Format the metrics of an evaluation for the user."""
    parts = [f"loss {metrics['loss']:.4f}"]
    parts += [f"{NAMES.get(name, name)} {metrics[name]:.2%}" for name in SHARES if name in metrics]
    parts += [f"{NAMES[name]} {metrics[name]:.4g}" for name in ("r2", "mae") if name in metrics]
    return ", ".join(parts)
