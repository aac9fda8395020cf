"""Files of an evaluation: metrics.json, and tables of classes, confusions and predictions."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.run.files import write_atomically

MOST_COLUMNS = 100  # probabilities of a row of predictions.csv; of more classes, only the predicted one is written


def write_files(
    folder: Path,
    metrics: dict[str, Any],
    values: np.ndarray,
    targets: np.ndarray,
    class_names: Sequence[str],
    images: Iterable[tuple[int, str]],
) -> None:
    """Write the files of an evaluation into `folder`.

    Args:
        folder: The folder, which is made if it does not exist.
        metrics: The metrics; the confusion matrix is not repeated in metrics.json.
        values: Predictions (n, k).
        targets: True classes (n,), labels or numbers (n, k).
        class_names: Names of the k classes, labels or columns.
        images: Index in the split and name of each image.

    Raises:
        OSError: If a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = {name: value for name, value in metrics.items() if name != "confusion"}
    write_atomically(folder / "metrics.json", json.dumps(shown, indent=2) + "\n")
    for table in ("per_class", "per_column"):
        if rows := metrics.get(table):
            _write(folder / f"{table}.csv", rows[0], (row.values() for row in rows))
    if "confusion" in metrics:
        counts = zip(class_names, metrics["confusion"], strict=True)
        _write(folder / "confusion.csv", ["true", *class_names], ([name, *row] for name, row in counts))
    of_classes = targets.ndim == 1
    header, cells = (_class_rows if of_classes else _column_rows)(values, targets, class_names)
    lines = ([index, name, *cells(row)] for row, (index, name) in enumerate(images))
    _write(folder / "predictions.csv", ["index", "image", *header], lines)


Cells = Callable[[int], list]


def _class_rows(values: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> tuple[list[str], Cells]:
    every = range(len(names)) if len(names) <= MOST_COLUMNS else ()
    best = values.argmax(axis=1)

    def cells(row: int) -> list:
        chosen = [names[targets[row]], names[best[row]], values[row, best[row]]]
        return [*chosen, *(values[row, i] for i in every)]

    return ["true", "predicted", "probability", *(f"p({names[i]})" for i in every)], cells


def _column_rows(values: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> tuple[list[str], Cells]:
    header = [*(f"true({name})" for name in names), *(f"predicted({name})" for name in names)]
    return header, lambda row: [*targets[row], *values[row]]


def _write(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, written.getvalue().encode("utf-8", "surrogateescape"))
