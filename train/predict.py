"""Classify images with a trained run: `python -m train.predict --workdir runs/vit-digits image.png`."""

import sys
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from train.attention_picture import attention_panels, draw_attention
from train.augment import normalize
from train.build import load_run
from train.commandline import expand_user
from train.config import UserError
from train.data import image_to_input
from train.startup import set_up_process
from vit_jax.objectives.protocol import Classifier


def predict(
    images: Annotated[tuple[Path, ...], tyro.conf.Positional],
    workdir: str,
    top: int = 5,
    attention: Path | None = None,
) -> None:
    """Print the most probable classes of each image, by the best checkpoint of a run.

    Args:
        images: Image files, of any format that Pillow reads.
        workdir: The run's folder.
        top: Classes to print for each image.
        attention: Picture to draw, such as OUT.png: what the class token attends to in each image, per head of the last
            layer and rolled out over layers.
    """
    if not images:
        raise UserError("no image given: python -m train.predict --workdir W IMAGE...")
    run = load_run(workdir)
    if not isinstance(run.objective, Classifier):
        raise UserError(f"{workdir} holds an encoder that tells no classes apart: fine-tune it first, by --init-from")
    shape, names = run.info.image_shape, run.info.class_names
    pixels = np.stack([image_to_input(path, shape, run.config.data) for path in images])

    @jax.jit
    def probabilities(pixels):
        logits = run.objective.predict(run.params, run.extras, normalize(pixels, run.info.mean, run.info.std))
        return jax.nn.softmax(logits.astype(np.float32))

    table = np.asarray(probabilities(pixels))
    if attention is not None:
        titles = [
            f"{path.name}\n{row.max():.1%} {names[row.argmax()]}" for path, row in zip(images, table, strict=True)
        ]
        draw_attention(attention_panels(run, pixels), pixels, titles, attention)
    for path, row in zip(images, table, strict=True):
        print(path)
        for index in np.argsort(-row)[:top]:
            print(f"  {row[index]:7.2%}  {names[index]}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 2 for a user's mistake."""
    try:
        arguments = expand_user(sys.argv[1:] if argv is None else argv)
        tyro.cli(predict, args=arguments, prog="python -m train.predict", description=__doc__)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    set_up_process()
    sys.exit(main())
