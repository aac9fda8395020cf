"""Write predictions as a table: CSV, or one JSON object per line."""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from train.errors import UserError
from train.run.files import draft

if TYPE_CHECKING:
    from train.prediction import Prediction

Row = dict[str, Any]


def check_table(out: Path) -> None:
    """Raises UserError unless the suffix of `out` is one of a table, and its folder exists."""
    if out.suffix.lower() not in WRITERS:
        raise UserError(f"--out {out}: expected a file that ends in {' or '.join(WRITERS)}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")


def write_table(out: Path, predictions: "Iterable[Prediction]", class_names: Sequence[str]) -> int:
    """Write a row for each image: its path, the most probable class, the probability of each class, and any error.

    `out` appears, or replaces an older file, once it is complete.

    Returns:
        The number of images that could not be read.

    Raises:
        UserError: If the file cannot be written.
    """
    part, failed = draft(out), 0
    try:
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            write = WRITERS[out.suffix.lower()](file, class_names)
            for prediction in predictions:
                failed += prediction.error is not None
                write(_row(prediction, class_names))
        part.replace(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return failed


def _row(prediction: "Prediction", class_names: Sequence[str]) -> Row:
    if prediction.error is not None:
        return {"path": str(prediction.path), "error": str(prediction.error)}
    probabilities = prediction.probabilities.tolist()
    best = int(prediction.probabilities.argmax())
    return {
        "path": str(prediction.path),
        "class": class_names[best],
        "probability": probabilities[best],
        "probabilities": dict(zip(class_names, probabilities, strict=True)),
    }


def _csv_writer(file: TextIO, class_names: Sequence[str]) -> Callable[[Row], None]:
    """Columns: path, class, probability, error, and one for each class, p(CLASS)."""
    columns = [f"p({name})" for name in class_names]
    writer = csv.DictWriter(file, ["path", "class", "probability", "error", *columns])
    writer.writeheader()

    def write(row: Row) -> None:
        each = row.pop("probabilities", {})
        writer.writerow(row | {f"p({name})": value for name, value in each.items()})

    return write


def _json_writer(file: TextIO, _: Sequence[str]) -> Callable[[Row], None]:
    return lambda row: print(json.dumps(row), file=file)


WRITERS = {".csv": _csv_writer, ".jsonl": _json_writer}
