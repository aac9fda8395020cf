"""Write predictions as a table: CSV, or one JSON object per line."""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from train.errors import UserError
from train.evaluation.metrics import THRESHOLD
from train.run.files import draft

if TYPE_CHECKING:
    from train.build import DataInfo
    from train.prediction import Prediction

Row = dict[str, Any]


def check_table(out: Path) -> None:
    """Raises UserError unless the suffix of `out` is one of a table, and its folder exists."""
    if out.suffix.lower() not in WRITERS:
        raise UserError(f"--out {out}: expected a file that ends in {' or '.join(WRITERS)}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")


def write_table(out: Path, predictions: "Iterable[Prediction]", info: "DataInfo") -> int:
    """Write a row for each image: its path, what is predicted, and any error.

    For classes that is the most probable one and the probability of each; for labels those with a probability of a half
    or more, and the probability of each; otherwise numbers.

    `out` appears, or replaces an older file, once it is complete.

    Returns:
        The number of images that could not be read.

    Raises:
        UserError: If the file cannot be written.
    """
    part, failed = draft(out), 0
    try:
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            write = WRITERS[out.suffix.lower()](file, info)
            for prediction in predictions:
                failed += prediction.error is not None
                write(_row(prediction, info))
        part.replace(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return failed


def _row(prediction: "Prediction", info: "DataInfo") -> Row:
    if prediction.error is not None:
        return {"path": str(prediction.path), "error": str(prediction.error)}
    row, each = {"path": str(prediction.path)}, dict(zip(info.class_names, prediction.outputs.tolist(), strict=True))
    if info.target == "regression":
        return row | {"numbers": each}
    if info.target == "multilabel":
        return row | {"labels": [name for name, value in each.items() if value >= THRESHOLD], "probabilities": each}
    best = max(each, key=each.get)
    return row | {"class": best, "probability": each[best], "probabilities": each}


def _csv_writer(file: TextIO, info: "DataInfo") -> Callable[[Row], None]:
    """Columns: path, then class and probability, or labels (separated by "; "), or neither, then error, and one each.

    That is p(NAME) for each class or label, and predicted(NAME) for each column of numbers.
    """
    first = {"class": ["class", "probability"], "multilabel": ["labels"], "regression": []}[info.target]
    column = ("predicted({})" if info.target == "regression" else "p({})").format
    writer = csv.DictWriter(file, ["path", *first, "error", *map(column, info.class_names)])
    writer.writeheader()

    def write(row: Row) -> None:
        each = row.pop("probabilities", None) or row.pop("numbers", {})
        if "labels" in row:
            row["labels"] = "; ".join(row["labels"])
        writer.writerow(row | {column(name): value for name, value in each.items()})

    return write


def _json_writer(file: TextIO, _: "DataInfo") -> Callable[[Row], None]:
    return lambda row: print(json.dumps(row), file=file)


WRITERS = {".csv": _csv_writer, ".jsonl": _json_writer}
