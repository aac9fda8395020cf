"""Classify images with a trained run: `python -m train.predict --workdir runs/vit-digits image.png`."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from train.commandline import expand_user, prog
from train.config import UserError
from train.terminal import run_command, tell

DRAWN = 100  # most images in one picture, which has a row for each


def predict(
    images: Annotated[tuple[Path, ...], tyro.conf.Positional],
    workdir: str,
    top: int = 5,
    attention: Path | None = None,
) -> int:
    """Print the most probable classes of each image, by the best checkpoint of a run. Returns the exit status.

    Args:
        images: Image files (docs/images.md).
        workdir: The run's folder.
        top: Classes to print for each image.
        attention: Picture to draw, such as OUT.png: what the class token attends to in each image, per head of the last
            layer and rolled out over layers.
    """
    if not images:
        raise UserError("no image given: python -m train.predict --workdir W IMAGE...")
    if top < 1:
        raise UserError(f"--top is {top}; it must be 1 or more")
    if attention and len(images) > DRAWN:
        raise UserError(f"--attention draws up to {DRAWN} images; {len(images)} are given")
    from train.prediction import show_predictions  # here, as JAX takes seconds to import

    return show_predictions(images, workdir, top, attention)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status.

    2: invalid user input, or none of the images can be read. 1: some of them cannot.
    """
    try:
        arguments = expand_user(sys.argv[1:] if argv is None else argv)
        return tyro.cli(predict, args=arguments, prog=prog("predict"), description=__doc__)
    except UserError as error:
        return tell(2, f"error: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main))
