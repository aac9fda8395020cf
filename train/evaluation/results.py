"""The part of a page about predictions: a table for each class, confusions, calibration and examples."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from train.build import DataInfo
from train.evaluation.charts import reliability_chart, scatter_chart
from train.evaluation.gallery import Shown, choose
from train.evaluation.metrics import classification_metrics, multilabel_metrics, regression_metrics
from train.evaluation.page import Cell, Column, Table, number, number_cell, share_cell, text_cell
from train.evaluation.thumbnails import thumbnail
from vit_jax.printable import printable

LEGIBLE = 25  # classes of a confusion matrix, at most
CONFUSIONS = 50  # rows of the list of confusions
SCATTERS = 6

NOTES = {
    "class": "The predicted class, the true one, and the confidence.",
    "multilabel": "The predicted labels, the true ones, and the label whose probability is furthest from the truth.",
    "regression": "The predicted numbers, the true ones, and the largest error in standard deviations.",
}
METRICS = {"class": classification_metrics, "multilabel": multilabel_metrics, "regression": regression_metrics}


def measure(info: DataInfo, values: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Metrics of predictions, by the kind of target; see `train.evaluation.metrics`."""
    return METRICS[info.target](values, targets, info.class_names)


def tiles(target: str, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """The most important metrics, as (name, value)."""
    percent = lambda name: "-" if metrics[name] is None else f"{metrics[name]:.2%}"
    plain = lambda name: "-" if metrics[name] is None else number(metrics[name])
    if target == "class":
        top = [("Top 5", percent("top5_accuracy"))] if "top5_accuracy" in metrics else []
        rows = [("Accuracy", percent("accuracy")), *top, ("Log loss", f"{metrics['log_loss']:.3f}")]
        rows.append(("Calibration error", percent("ece")))
    elif target == "multilabel":
        rows = [("Mean average precision", percent("mean_average_precision")), ("F1 (micro)", percent("f1_micro"))]
        rows.append(("F1 (macro)", percent("f1_macro")))
    else:
        rows = [("Mean absolute error", plain("mae")), ("RMSE", plain("rmse")), ("R²", plain("r2"))]
    return [*rows, ("Images", f"{metrics['examples']:,}")]


def results(
    info: DataInfo,
    metrics: dict[str, Any],
    values: np.ndarray,
    targets: np.ndarray,
    image_of: Callable[[int], np.ndarray],
    name_of: Callable[[int], str],
) -> dict[str, Any]:
    """The context of a page about predictions.

    Args:
        info: The run's data.
        metrics: From `measure`.
        values: Predictions (n, k).
        targets: True classes (n,), labels or numbers (n, k).
        image_of: The image of a row.
        name_of: The name of a row's image, "" if it has none.
    """
    target = info.target
    mistakes, successes = choose(target, values, targets, [printable(name, 40) for name in info.class_names])
    show = lambda examples: [_figure(each, image_of(each.row), name_of(each.row)) for each in examples]
    shown = {
        "mistakes_heading": "Largest errors" if target == "regression" else "Most confident mistakes",
        "mistakes_note": NOTES[target],
        "mistakes": show(mistakes),
        "successes": show(successes),
        "table": _columns_table(metrics) if target == "regression" else _classes_table(metrics, target),
        "heading": {"class": "Classes", "multilabel": "Labels", "regression": "Columns"}[target],
        "caption": {"class": "Every class", "multilabel": "Every label", "regression": "Every column"}[target],
        "note": "",
        "confusions": None,
        "matrix": None,
        "reliability": None,
        "scatter": None,
    }
    if target == "class":
        shown |= {
            "confusions": confusion_table(metrics["confusion"], info.class_names),
            "matrix": _matrix(metrics["confusion"], info.class_names),
            "reliability": reliability_chart(metrics["reliability"]),
            "ece": f"{metrics['ece']:.2%}",
        }
        if len(info.class_names) > LEGIBLE:
            shown["note"] = f"{len(info.class_names):,} classes: the headings sort them."
    if target == "regression":
        columns = zip(info.class_names, targets.T, values.T, strict=True)
        shown["scatter"] = [(name, scatter_chart(name, *both)) for name, *both in list(columns)[:SCATTERS]]
    return shown


def confusion_table(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    """The most frequent pairs of a true and another predicted class."""
    counts = np.array(confusion)
    support = counts.sum(axis=1)
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    rows = [
        [text_cell(names[i]), text_cell(names[j]), number_cell(int(wrong[i, j])), share_cell(wrong[i, j] / support[i])]
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    ]
    return Table([Column("True", False), Column("Predicted", False), Column("Images"), Column("Of the class")], rows)


def _matrix(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Any] | None:
    if len(names) > LEGIBLE:
        return None
    rows = []
    for i, counts in enumerate(confusion):
        total = max(1, sum(counts))
        kinds = ["none" if not count else "hit" if i == j else "miss" for j, count in enumerate(counts)]
        colour = lambda count, kind, total=total: round(
            55 * count / total if kind == "hit" else 12 + 43 * count / total
        )
        cells = [dict(count=c, kind=kind, colour=colour(c, kind)) for c, kind in zip(counts, kinds, strict=True)]
        rows.append((printable(names[i]), cells))
    return {"names": [*map(printable, names)], "rows": rows, "long": max(map(len, names)) > 3}


def _classes_table(metrics: dict[str, Any], target: str) -> Table:
    shares = ["precision", "recall", "f1"]
    titles = ["Precision", "Recall", "F1"]
    if target == "multilabel":
        shares, titles = ["average_precision", *shares], ["Average precision", *titles]
    columns = [Column("Class" if target == "class" else "Label", False), *map(Column, titles)]
    rows = [
        [
            text_cell(row["name"]),
            *(share_cell(row[name], bar=True) for name in shares),
            Cell(f"{row['support']:,}", row["support"]),
            Cell(f"{row['predicted']:,}", row["predicted"]),
        ]
        for row in metrics["per_class"]
    ]
    return Table([*columns, Column("Images"), Column("Predicted")], rows)


def _columns_table(metrics: dict[str, Any]) -> Table:
    names = {"mae": "Mean absolute error", "rmse": "RMSE", "r2": "R²", "mean": "Mean", "std": "Standard deviation"}
    rows = [[text_cell(row["name"]), *(number_cell(row[name]) for name in names)] for row in metrics["per_column"]]
    return Table([Column("Column", False), *map(Column, names.values())], rows)


def _figure(example: Shown, pixels: np.ndarray, name: str) -> dict[str, Any]:
    same = example.true == example.predicted
    lines = [example.predicted, *([] if same else [f"true: {example.true}"]), example.detail]
    alt = f"Image of {example.true}, predicted as {example.predicted}"
    return {"picture": thumbnail(pixels), "alt": alt, "lines": lines, "file": printable(name, None)}
