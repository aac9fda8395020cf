"""Metrics of predictions, by scikit-learn, as plain numbers that JSON can hold.

Every function takes numpy arrays with a row per example. An undefined number, such as the average precision of a label
that no example has, is None, and means leave it out.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

BINS = 15  # of confidence, as in Guo et al. 2017, arXiv:1706.04599
THRESHOLD = 0.5  # probability from which a label counts as predicted
TOP = 5

# scikit-learn takes a second to import, therefore only the functions that use it import it.


def classification_metrics(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Metrics of a classifier.

    Args:
        probabilities: Probability of each class, (n, k). Rows need not sum to one (sigmoids).
        labels: The true classes, int (n,).
        class_names: Names of the k classes.

    Returns:
        "examples", "accuracy", "top5_accuracy" (only for more than 5 classes), "balanced_accuracy" (the mean recall of
        the classes that occur), "f1_macro" (over classes that occur or are predicted), "log_loss", "ece" (see
        `expected_calibration_error`), "per_class" (a dict of "name", "precision", "recall", "f1", "support" and
        "predicted" for each class), "confusion" (a list for each true class with the number of examples for each
        predicted one) and "reliability".
    """
    from sklearn import metrics

    classes = np.arange(len(class_names))
    _check(probabilities, labels, (len(probabilities), len(classes)), (len(probabilities),))
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    confusion = metrics.confusion_matrix(labels, predicted, labels=classes)
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    bins = reliability(probabilities.max(axis=1), predicted == labels)
    occurs, found = support > 0, confusion.sum(axis=0)
    result = {"examples": len(labels), "accuracy": float(metrics.accuracy_score(labels, predicted))}
    if len(classes) > TOP:
        top = metrics.top_k_accuracy_score(labels, probabilities, k=TOP, labels=classes)
        result["top5_accuracy"] = float(top)
    return result | {
        "balanced_accuracy": float(recall[occurs].mean()),
        "f1_macro": float(f1[occurs | (found > 0)].mean()),
        "log_loss": float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean()),
        "ece": expected_calibration_error(bins),
        "per_class": [
            {
                "name": name,
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
                "predicted": int(found[i]),
            }
            for i, name in enumerate(class_names)
        ],
        "confusion": confusion.tolist(),
        "reliability": bins,
    }


def reliability(confidences: np.ndarray, correct: np.ndarray) -> list[dict[str, Any]]:
    """The data of a reliability diagram: `BINS` bins of equal width over the confidence.

    scikit-learn's `calibration_curve` leaves out the number of examples in a bin, which the error needs.

    Args:
        confidences: Probability of the predicted class, (n,).
        correct: Whether the prediction is right, bool (n,).

    Returns:
        For each bin "from", "to", "count", and the mean "confidence" and "accuracy", None in an empty bin. A bin
        includes its upper limit.
    """
    edges = np.linspace(0, 1, BINS + 1)
    index = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, BINS - 1)
    rows = []
    for i in range(BINS):
        inside = index == i
        mean = lambda values, inside=inside: float(values[inside].mean()) if inside.any() else None
        count = int(inside.sum())
        row = {"from": float(edges[i]), "to": float(edges[i + 1]), "count": count}
        rows.append(row | {"confidence": mean(confidences), "accuracy": mean(correct)})
    return rows


def expected_calibration_error(bins: Iterable[dict[str, Any]]) -> float:
    """Mean over examples of the distance between the confidence and the accuracy of their bin (see `reliability`)."""
    filled = [row for row in bins if row["count"]]
    total = sum(row["count"] for row in filled)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in filled) / total


def multilabel_metrics(probabilities: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Metrics of a classifier with any number of labels per example.

    Args:
        probabilities: Probability of each label, (n, k). A label counts as predicted from 0.5 on.
        targets: 1 for the labels of an example, otherwise 0, (n, k).
        names: Names of the k labels.

    Returns:
        "examples", "mean_average_precision" (over labels that occur), "f1_micro", "f1_macro", and "per_class": a dict
        of "name", "average_precision", "precision", "recall", "f1", "support" and "predicted" for each label.
    """
    from sklearn import metrics

    shape = (len(probabilities), len(names))
    _check(probabilities, targets, shape, shape)
    targets, predicted = targets.astype(bool), probabilities >= THRESHOLD
    rows = []
    for name, of_label, found, probability in zip(names, targets.T, predicted.T, probabilities.T, strict=True):
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            of_label, found, average="binary", zero_division=0
        )
        average_precision = float(metrics.average_precision_score(of_label, probability)) if of_label.any() else None
        rows.append(
            {
                "name": name,
                "average_precision": average_precision,
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "support": int(of_label.sum()),
                "predicted": int(found.sum()),
            }
        )
    return {
        "examples": len(targets),
        "mean_average_precision": _mean(row["average_precision"] for row in rows),
        "f1_micro": float(metrics.f1_score(targets.ravel(), predicted.ravel(), zero_division=0)),
        "f1_macro": _mean(row["f1"] for row in rows),
        "per_class": rows,
    }


def regression_metrics(predictions: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Metrics of predicted numbers.

    Args:
        predictions: Predicted numbers in raw units, (n, m).
        targets: True numbers, (n, m).
        names: Names of the m numbers.

    Returns:
        "examples", the means over columns "mae", "rmse" and "r2", and "per_column": a dict of "name", "mae", "rmse",
        "r2", "mean" and "std" (both of the true numbers) for each. "r2" is None if the true numbers do not vary.
    """
    from sklearn import metrics

    shape = (len(predictions), len(names))
    _check(predictions, targets, shape, shape)
    rows = []
    for name, predicted, true in zip(names, predictions.T, targets.T, strict=True):
        rows.append(
            {
                "name": name,
                "mae": float(metrics.mean_absolute_error(true, predicted)),
                "rmse": float(metrics.root_mean_squared_error(true, predicted)),
                "r2": float(metrics.r2_score(true, predicted)) if np.ptp(true) > 0 else None,
                "mean": float(true.mean()),
                "std": float(true.std()),
            }
        )
    means = {name: _mean(row[name] for row in rows) for name in ("mae", "rmse", "r2")}
    return {"examples": len(targets), **means, "per_column": rows}


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are defined; None if there are none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _check(predictions: np.ndarray, targets: np.ndarray, shape: tuple[int, ...], target_shape: tuple[int, ...]) -> None:
    """Raises ValueError for arrays of other shapes, without a row, or with predictions that are not finite."""
    if predictions.shape != shape or targets.shape != target_shape or not len(predictions):
        raise ValueError(
            f"predictions {predictions.shape} and targets {targets.shape}: expected {shape} and {target_shape}, "
            "with at least one row"
        )
    if not np.isfinite(predictions).all():
        raise ValueError("some predictions are not finite")
