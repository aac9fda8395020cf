"""Classify image files with a trained run."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float

from train.attention_picture import attention_panels, draw_attention
from train.commandline.terminal import tell
from train.data import Unreadable, image_to_input
from train.data.augment import normalize
from train.errors import UserError
from train.run.stored import Run, load_run
from vit_jax.objectives.protocol import Classifier
from vit_jax.printable import printable

BATCH = 64  # images in memory at a time
INDEPENDENT = "the probability of each class is independent (--loss=sigmoid): percentages need not add up to 100%"


def show_predictions(images: Sequence[Path], workdir: str, top: int, attention: Path | None) -> int:
    """Print the `top` most probable classes of each image, using the best checkpoint of a run.

    Args:
        images: Image files, one or more. An unreadable one prints an error line and does not stop the others.
        workdir: The run's folder.
        top: Number of classes to print for each image.
        attention: File for a picture of the model's attention, if any.

    Returns:
        The exit status: 0, 1 if some of the images could not be read, 2 if none could.

    Raises:
        UserError: If the workdir contains no trained classifier, or the picture cannot be drawn.
    """
    run = load_run(workdir)
    if not isinstance(run.objective, Classifier):
        raise UserError(f"{workdir} contains an encoder without a classifier: fine-tune it first, with --init-from")
    size = len(images) if attention else min(BATCH, len(images))  # a picture shows all of them
    predict = make_predict(run)
    failed = 0
    if are_independent(run):
        print(INDEPENDENT)
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        pixels, errors = read_images(run, batch, size)
        table = np.asarray(predict(pixels))
        if attention and len(errors) < len(batch):
            draw(run, attention, batch, pixels, table, errors)
        for i, (path, row) in enumerate(zip(batch, table, strict=False)):
            if i in errors:
                tell(1, f"error: {errors[i]}")
            else:
                show(path, row, run.info.class_names, top)
        failed += len(errors)
    if attention and failed < len(images):
        print(f"attention drawn to {printable(attention, None)}")
    return 0 if not failed else 1 if failed < len(images) else 2


def are_independent(run: Run) -> bool:
    """Whether the probabilities of classes are independent: sigmoids of the logits instead of their softmax.

    They are not if a distillation head is used: it learns the teacher's softmax, with any loss of the class head.
    """
    return run.config.loss == "sigmoid" and getattr(run.objective, "head", "class") == "class"


def make_predict(run: Run):
    """A jitted function from pixels, uint8 (b, h, w, c), to probabilities of the classes (b, k)."""
    link = jax.nn.sigmoid if are_independent(run) else jax.nn.softmax

    @jax.jit
    def predict(pixels: Array) -> Float[Array, "b k"]:
        logits = run.objective.predict(run.params, run.extras, normalize(pixels, run.info.mean, run.info.std))
        return link(logits.astype(np.float32))

    return predict


def read_images(run: Run, paths: Sequence[Path], size: int) -> tuple[np.ndarray, dict[int, Unreadable]]:
    """Read images as inputs of a run.

    Args:
        run: The run.
        paths: The image files.
        size: Number of rows of the result; missing and unreadable images are zeros.

    Returns:
        Pixels, uint8 (size, h, w, c), and the errors of unreadable images by index.
    """
    pixels = np.zeros((size, *run.info.image_shape), np.uint8)
    errors = {}
    for i, path in enumerate(paths):
        try:
            pixels[i] = image_to_input(path, run.info.image_shape, run.config.data, run.info.mean)
        except Unreadable as error:
            errors[i] = error
    return pixels, errors


def show(path: Path, probabilities: np.ndarray, class_names: Sequence[str], top: int) -> None:
    """Print an image's most probable classes."""
    print(printable(path, None))
    for index in np.argsort(-probabilities)[:top]:
        print(f"  {probabilities[index]:7.2%}  {printable(class_names[index])}")


def draw(
    run: Run,
    file: Path,
    paths: Sequence[Path],
    pixels: np.ndarray,
    probabilities: np.ndarray,
    errors: dict[int, Unreadable],
) -> None:
    """Draw the attention for all readable images into `file`."""
    good = [i for i in range(len(paths)) if i not in errors]
    best = lambda row: f"{row.max():.1%} {printable(run.info.class_names[row.argmax()])}"
    titles = [f"{printable(paths[i].name)}\n{best(probabilities[i])}" for i in good]
    draw_attention(attention_panels(run, pixels[good]), pixels[good], titles, file)
