"""Classify images with a trained run: `python -m train.predict --workdir runs/vit-digits image.png`.

Prints the most probable classes of each image, by the run's best checkpoint.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from train.commandline.options import read_options, split
from train.commandline.ranges import Range
from train.commandline.terminal import run_command, tell
from train.errors import UserError

REQUIRED = tyro.conf.arg(metavar="IMAGES", help_behavior_hint="(required)")
DRAWN = 100  # most images in one picture, which has a row for each


@dataclasses.dataclass(frozen=True)
class Options:
    """Which images, by which run."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, REQUIRED]
    """Image files (docs/images.md)."""
    workdir: str
    """The run's folder."""
    top: Annotated[int, Range(1, 1_000_000)] = 5
    """Classes to print for each image."""
    attention: Path | None = None
    """Picture to draw (OUT.png): what the class token attends to, per head of the last layer and over all layers."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status.

    2: invalid user input, or none of the images can be read. 1: some of them cannot.
    """
    try:
        options = read_options(Options, split(sys.argv[1:] if argv is None else argv), "predict", __doc__)
        if options.attention and len(options.images) > DRAWN:
            raise UserError(f"--attention draws up to {DRAWN} images; {len(options.images)} are given")
        from train.prediction import show_predictions  # here, as JAX takes seconds to import

        return show_predictions(options.images, options.workdir, options.top, options.attention)
    except UserError as error:
        return tell(2, f"error: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main))
