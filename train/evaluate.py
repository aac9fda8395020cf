"""Evaluate a trained run or published weights on labelled images: `python -m train.evaluate --workdir runs/vit-digits`.

Prints accuracy, calibration, the worst classes and the speed, and writes tables and a page with `--out`.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

from train.allocator import compute_in_main_thread
from train.commandline.options import read_options, split
from train.commandline.ranges import Range
from train.commandline.terminal import run_command, tell
from train.compilation import keep_programs
from train.config import MOST_IMAGES
from train.errors import Stopped, UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """The network and the images to evaluate it on."""

    workdir: str | None = None
    """Folder of a run, whose best checkpoint is evaluated."""
    model: str | None = None
    """In place of a run: published weights, as timm/NAME.TAG, hf:ORG/REPO, or a folder with config.json."""
    data: str | None = None
    """Dataset, as in training; its classes are matched with the network's by name, or by their order if published
    weights do not name them; default: that of the run."""
    dir: str | None = None
    """Directory of prepared TFDS datasets; default: that of the run."""
    split: str | None = None
    """Split of the dataset: `train`, or the name of another, such as `test`; default: the evaluation split."""
    flip: bool = False
    """Average the predictions for each image and its mirror image."""
    crops: Literal[1, 5] = 1
    """Number of crops whose predictions are averaged: the central one, or also those at the four corners."""
    batch_size: Annotated[int, Range(1, MOST_IMAGES)] = 256
    """Images per batch, on all devices together."""
    out: Path | None = None
    """Folder to write metrics.json, per_class.csv (for numbers per_column.csv), confusion.csv, predictions.csv and
    evaluation.html into."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 0, 2 for invalid input, or 1 if memory runs out."""
    try:
        options = read_options(Options, split(sys.argv[1:] if argv is None else argv), "evaluate", __doc__)
        keep_programs()
        compute_in_main_thread()
        from train.evaluation.evaluation import evaluate  # not at the top: JAX takes seconds to import

        evaluate(options)
        return 0
    except UserError as error:
        return tell(2, f"error: {error}")
    except Stopped as error:
        return tell(1, f"stopped: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main))
