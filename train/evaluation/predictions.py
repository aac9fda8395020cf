"""Predictions of a trained network for every image of a split, with the device kept busy."""

import collections
import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
from jax.sharding import Mesh
from jaxtyping import Array

from train.config import Data
from train.data import Dataset, Skipped, eval_batches
from train.data.dataset import warn
from train.errors import Stopped
from train.prediction import make_predict
from train.run.stored import Run
from train.sharding import batch_sharding, replicated, sufficient_batch, to_devices

MARGIN = 0.875  # side of each of five crops, as a fraction of the image from which they are cut
AHEAD = 3  # batches on the device at a time
SECONDS = 1.0  # for which the forward pass alone is measured


class Predictions(NamedTuple):
    """Predictions for the readable images of a split.

    Attributes:
        values: Probability of each class or label, or numbers, (n, k).
        targets: True classes (n,), labels (n, k) or numbers (n, k).
        indices: Index of each image in the split, (n,).
        seconds: Time for reading, decoding and predicting all of them, without compilation.
        forward_rate: Images per second of the forward pass alone, on images that are on the device already; None if it
            was not measured.
    """

    values: np.ndarray
    targets: np.ndarray
    indices: np.ndarray
    seconds: float
    forward_rate: float | None

    @property
    def rate(self) -> float:
        """Images per second from the file to the probabilities."""
        return len(self.values) / self.seconds


def predict_split(
    run: Run,
    dataset: Dataset,
    data: Data,
    mesh: Mesh,
    batch_size: int,
    *,
    flip: bool = False,
    crops: int = 1,
    measure: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Predictions:
    """Predict all images of `dataset.eval`.

    Threads or workers decode images while the device computes, and results are fetched a few batches later.

    Args:
        run: A run with a head.
        dataset: The images.
        data: Their preprocessing.
        mesh: The devices, which share each batch.
        batch_size: Images per batch on all devices together; rounded up so that the devices can share it.
        flip: Average the predictions for each image and its mirror image.
        crops: 1, or 5 to average those for the four corners and the centre of each image.
        measure: Also measure the forward pass alone, which takes about two more seconds.
        say: Shows a line to the user.

    Raises:
        UserError: If too many images are unreadable.
    """
    sharing = mesh.shape["data"] * mesh.shape["fsdp"]
    size = sufficient_batch(-(-batch_size // sharing) * sharing, len(dataset.eval), mesh)
    if mesh.size > 1:
        everywhere = lambda tree: jax.device_put(tree, replicated(mesh))
        run = dataclasses.replace(run, params=everywhere(run.params), extras=everywhere(run.extras))
    if crops == 5:
        dataset, data = with_margin(dataset, data)
    since = time.perf_counter()
    say("compiling the forward pass ...")
    pixels = jax.ShapeDtypeStruct((size, *dataset.image_shape), dataset.pixels, sharding=batch_sharding(mesh))
    forward = forward_of(run, flip=flip, crops=crops).lower(pixels).compile()
    say(f"compiled in {time.perf_counter() - since:.1f} s")

    skipped = Skipped(dataset.eval, "evaluation", warn)
    waiting, rows = collections.deque(), []
    steps = -(-len(dataset.eval) // size)
    track = rich.progress.track(
        eval_batches(dataset, data, size, skipped),
        total=steps,
        description=f"Evaluating {len(dataset.eval):,} images",
        disable=not sys.stdout.isatty(),
    )
    since = time.perf_counter()
    for batch in track:
        placed = to_devices(batch["image"], mesh)
        waiting.append((forward(placed), batch["label"], batch["mask"] > 0))  # returns before the device has finished
        if len(waiting) == AHEAD:
            rows.append(_fetched(*waiting.popleft()))
    rows += [_fetched(*each) for each in waiting]
    seconds = time.perf_counter() - since
    values, targets, real = map(np.concatenate, zip(*rows, strict=True))
    indices = np.flatnonzero(real)  # the split is read in order
    rate = forward_rate(forward, placed) if measure else None
    return Predictions(values[indices], targets[indices], indices, seconds, rate)


@contextlib.contextmanager
def out_of_memory_is_said(advice: str) -> Iterator[None]:
    """Context that raises Stopped, with `advice`, if the memory of a device runs out."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise Stopped(f"memory ran out: {advice}") from error


def _fetched(values: Array, targets: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.asarray(values), targets, real


def with_margin(dataset: Dataset, data: Data) -> tuple[Dataset, Data]:
    """The dataset and its preprocessing, with images larger than the model's input, to cut five crops from."""
    height, width, channels = dataset.image_shape
    size = tuple(math.ceil(side / MARGIN) for side in (height, width))
    share = min(1.0, (data.eval_crop or 1.0) / MARGIN)
    return (
        dataclasses.replace(dataset, image_shape=(*size, channels)),
        dataclasses.replace(data, image_size=size, eval_crop=share),
    )


def views(pixels: Array, size: tuple[int, int], *, flip: bool, crops: int) -> list[Array]:
    """The views of images (b, h, w, c) whose predictions are averaged: one or five crops of `size`, and mirrored."""
    height, width = size
    down, right = pixels.shape[1] - height, pixels.shape[2] - width
    corners = [(0, 0), (0, right), (down, 0), (down, right)] if crops == 5 else []
    cut = [pixels[:, y : y + height, x : x + width] for y, x in [*corners, (down // 2, right // 2)]]
    return [*cut, *(view[:, :, ::-1] for view in cut if flip)]


def forward_of(run: Run, *, flip: bool, crops: int) -> Callable[[Array], Array]:
    """The jitted function from pixels (b, h, w, c) of the pipeline to the mean of the predictions for their views."""
    predict, size = make_predict(run), run.info.image_shape[:2]

    @jax.jit
    def forward(pixels):
        return jnp.mean(jnp.stack([predict(view) for view in views(pixels, size, flip=flip, crops=crops)]), axis=0)

    return forward


def forward_rate(forward: Callable[[Array], Array], pixels: Array) -> float:
    """Images per second of `forward` for a batch on the device."""
    forward(pixels).block_until_ready()
    since, batches = time.perf_counter(), 0
    while time.perf_counter() - since < SECONDS or batches < AHEAD:
        jax.block_until_ready([forward(pixels) for _ in range(AHEAD)])
        batches += AHEAD
    return batches * len(pixels) / (time.perf_counter() - since)
