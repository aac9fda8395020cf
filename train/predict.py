"""Predict classes, labels or numbers of images: `python -m train.predict --workdir runs/vit-digits image.png`.

Prints the most probable classes or labels of each image, or its numbers, using the best checkpoint of the run, or
writes a table.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from train.allocator import compute_in_main_thread
from train.commandline.options import read_options, split
from train.commandline.ranges import Range
from train.commandline.terminal import run_command, tell
from train.compilation import keep_programs
from train.errors import UserError
from train.image_list import list_images

REQUIRED = tyro.conf.arg(metavar="IMAGES", help_behavior_hint="(required)")
DRAWN = 100  # largest number of images in one picture, which has a row per image


@dataclasses.dataclass(frozen=True)
class Options:
    """Images, and the run to use."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, REQUIRED]
    """Image files (docs/images.md lists the formats), folders of them, or patterns ("photos/**/*.jpg"); - reads paths
    from standard input, one per line."""
    workdir: str
    """Folder of the run."""
    top: Annotated[int, Range(1, 1_000_000)] = 5
    """Number of classes or labels to print for each image."""
    out: Path | None = None
    """Table to write instead of printing, with the probability of every class: OUT.csv, or OUT.jsonl with a JSON object
    per line."""
    attention: Path | None = None
    """Picture to write (OUT.png): attention of the class token, for each head of the last layer and over all layers."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status.

    Returns:
        0: all images were classified. 1: some images cannot be read. 2: none can, or invalid user input.
    """
    try:
        options = read_options(Options, split(sys.argv[1:] if argv is None else argv), "predict", __doc__)
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
        images = list_images(map(str, options.images), sys.stdin)
        if options.attention and len(images) > DRAWN:
            raise UserError(f"--attention draws at most {DRAWN} images, but {len(images)} are given")
        keep_programs()
        compute_in_main_thread()
        from train.prediction import show_predictions  # not at the top: JAX takes seconds to import

        return show_predictions(images, options.workdir, top=options.top, attention=options.attention, out=options.out)
    except UserError as error:
        return tell(2, f"error: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main))
