"""Predict classes, labels or numbers of image files with a trained run."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from rich.progress import track

from train.attention_picture import attention_panels, draw_attention
from train.build import DataInfo
from train.commandline.terminal import tell
from train.data import Unreadable, image_to_input
from train.data.augment import normalize
from train.errors import UserError
from train.prediction_table import check_table, write_table
from train.run.stored import Run, load_run
from train.scores import in_units
from vit_jax.objectives.protocol import Classifier
from vit_jax.printable import printable

BATCH = 64  # images in memory at a time
INDEPENDENT = "the probability of each {} is independent: percentages need not add up to 100%"


class Prediction(NamedTuple):
    """The outputs of a run for an image; None if it cannot be read, because of `error`.

    `outputs` (k,) are the probability of each class or label, or numbers.
    """

    path: Path
    outputs: np.ndarray | None
    error: Unreadable | None = None


def classify(run: Run, images: Sequence[Path]) -> Iterator[Prediction]:
    """Yield the prediction for each image, in order.

    Images are decoded in threads, in batches, while the one before is classified, so that memory does not grow.
    """
    predict_pixels, size = make_predict(run), min(BATCH, len(images))
    waiting = None
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        pixels, errors = read_images(run, batch, size)
        table = predict_pixels(pixels)  # returns before the device has finished
        if waiting is not None:
            yield from _rows(*waiting)
        waiting = (batch, table, errors)
    if waiting is not None:
        yield from _rows(*waiting)


def _rows(batch: Sequence[Path], table: Array, errors: dict[int, Unreadable]) -> Iterator[Prediction]:
    for i, (path, row) in enumerate(zip(batch, np.asarray(table), strict=False)):
        yield Prediction(path, None, errors[i]) if i in errors else Prediction(path, row)


def show_predictions(
    images: Sequence[Path], workdir: str, *, top: int, attention: Path | None, out: Path | None
) -> int:
    """Print or write the classes of images, using the best checkpoint of a run.

    Args:
        images: Image files, one or more. An unreadable one prints an error line and does not stop the others.
        workdir: The run's folder.
        top: Number of most probable classes to print for each image.
        attention: File for a picture of the model's attention, if any.
        out: File for a table, .csv or .jsonl, in place of the printed classes, if any.

    Returns:
        The exit status: 0, 1 if some of the images could not be read, 2 if none could.

    Raises:
        UserError: If the workdir contains no trained classifier, or a file cannot be written.
    """
    if out:
        check_table(out)
    run = load_run(workdir)
    check_classifies(run, workdir)
    drawn = attention is not None and draw(run, attention, images)
    if are_independent(run):
        print(INDEPENDENT.format("label" if run.info.target == "multilabel" else "class"))
    predictions = _reporting(classify(run, images))
    if out:
        failed = write_table(out, track(predictions, "Predicting", total=len(images)), run.info)
        print(f"{len(images) - failed:,} of {len(images):,} images predicted; the table is {printable(out, None)}")
    else:
        failed = 0
        for prediction in predictions:
            failed += prediction.error is not None
            if prediction.error is None:
                show(prediction, run.info, top)
    if drawn:
        print(f"attention drawn to {printable(attention, None)}")
    return 0 if not failed else 1 if failed < len(images) else 2


def _reporting(predictions: Iterator[Prediction]) -> Iterator[Prediction]:
    """Yield `predictions`, after printing the errors among them."""
    for prediction in predictions:
        if prediction.error is not None:
            tell(1, f"error: {prediction.error}")
        yield prediction


def are_independent(run: Run) -> bool:
    """Whether the probabilities are independent: sigmoids of the logits instead of their softmax.

    Those of labels are. Those of classes are not if a distillation head is used: it learns the teacher's softmax, with
    any loss of the class head.
    """
    if run.info.target == "multilabel":
        return True
    return run.config.loss == "sigmoid" and getattr(run.objective, "head", "class") == "class"


def predict(run: Run, image: os.PathLike | str) -> dict[str, float]:
    """The probability of each class or label for an image file, or numbers. See `Run.predict`."""
    check_classifies(run, "the run")
    pixels = image_to_input(image, run.info.image_shape, run.config.data, run.info.mean, run.info.pixels)
    row = np.asarray(run.predict_pixels(pixels[None]))[0]
    order = range(len(row)) if run.info.target == "regression" else np.argsort(-row)
    return {run.info.class_names[i]: float(row[i]) for i in order}


def check_classifies(run: Run, name: str) -> None:
    """Raises UserError unless the run is a classifier."""
    if not isinstance(run.objective, Classifier):
        raise UserError(f"{name} contains an encoder without a classifier: fine-tune it first, with --init-from")


def link_of(run: Run) -> Callable[[Array], Array]:
    """The function from what a run's model returns to probabilities or numbers."""
    if run.info.target == "regression":
        return lambda outputs: in_units(outputs, run.info)
    return jax.nn.sigmoid if are_independent(run) else jax.nn.softmax


def make_predict(run: Run):
    """A jitted function from pixels of the run's type (b, h, w, c) to probabilities or numbers (b, k)."""
    link = link_of(run)

    @jax.jit
    def predict_pixels(pixels: Array) -> Float[Array, "b k"]:
        logits = run.objective.predict(run.params, run.extras, normalize(pixels, run.info.mean, run.info.std))
        return link(logits.astype(np.float32))

    return predict_pixels


def read_images(run: Run, paths: Sequence[Path], size: int) -> tuple[np.ndarray, dict[int, Unreadable]]:
    """Read images as inputs of a run.

    Args:
        run: The run.
        paths: The image files.
        size: Number of rows of the result; missing and unreadable images are zeros.

    Returns:
        Pixels (size, h, w, c) of the run's type, and the errors of unreadable images by index.
    """
    pixels = np.zeros((size, *run.info.image_shape), run.info.pixels)
    errors = {}

    def fetch(index: int) -> None:
        try:
            info = run.info
            pixels[index] = image_to_input(paths[index], info.image_shape, run.config.data, info.mean, info.pixels)
        except Unreadable as error:
            errors[index] = error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fetch, range(len(paths))))
    return pixels, errors


def show(prediction: Prediction, info: DataInfo, top: int) -> None:
    """Print an image's most probable classes or labels, or its numbers."""
    print(printable(prediction.path, None))
    if info.target == "regression":
        for name, number in zip(info.class_names, prediction.outputs, strict=True):
            print(f"  {number:12.6g}  {printable(name)}")
        return
    for index in np.argsort(-prediction.outputs)[:top]:
        print(f"  {prediction.outputs[index]:7.2%}  {printable(info.class_names[index])}")


def draw(run: Run, file: Path, images: Sequence[Path]) -> bool:
    """Draw the attention for all readable images into `file`, and return whether there are any."""
    pixels, errors = read_images(run, images, len(images))
    good = [i for i in range(len(images)) if i not in errors]
    if not good:
        return False
    outputs, names = np.asarray(make_predict(run)(pixels)), run.info.class_names
    if run.info.target == "regression":
        said = lambda row: f"{printable(names[0])} {row[0]:.4g}"
    else:
        said = lambda row: f"{row.max():.1%} {printable(names[row.argmax()])}"
    titles = [f"{printable(images[i].name)}\n{said(outputs[i])}" for i in good]
    draw_attention(attention_panels(run, pixels[good]), pixels[good], titles, file)
    return True
