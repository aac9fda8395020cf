"""The length and the batch size of a run whose options leave them open: few images need more epochs."""

import dataclasses
import math

from jax.sharding import Mesh

from train.config import Config
from train.run.files import reachable
from train.run.stored import read_run_file

EPOCHS, BATCH = 10.0, 128
SHARE = 4  # a batch has at most one image in four, so that an epoch has several steps
LEAST_BATCH = 8  # below, means over a batch are noise
LEAST_STEPS = 300  # with fewer, a model hardly moves from where it starts


def with_length(config: Config, images: int | None, mesh: Mesh) -> Config:
    """`config` with a batch size and a length where they are None.

    A run that is already in the workdir keeps its own, so that it continues even if defaults or devices have changed.

    Args:
        config: The settings.
        images: Number of training images; None: many.
        mesh: The devices, which share a batch.
    """
    is_open = config.epochs is None and config.steps is None
    found = dict(
        epochs=EPOCHS,
        min_steps=LEAST_STEPS if is_open and images is not None else 0,
        batch_size=default_batch(images, mesh.shape["data"] * mesh.shape["fsdp"] * config.optim.accumulate),
    )
    if config.workdir is not None and (reachable(config.workdir) / "config.json").exists():
        there = read_run_file(config.workdir).config
        found |= {name: value for name in found if (value := getattr(there, name)) is not None}
    given = {name: getattr(config, name) for name in found}
    return dataclasses.replace(config, **{n: found[n] if value is None else value for n, value in given.items()})


def default_batch(images: int | None, sharing: int) -> int:
    """BATCH, or for few images the largest power of two that is at most a SHARE of them; a multiple of `sharing`."""
    size = BATCH if images is None else min(BATCH, 2 ** int(math.log2(max(images / SHARE, LEAST_BATCH))))
    return -(-size // sharing) * sharing


def notes_on_length(given: Config, config: Config, images: int) -> list[str]:
    """Lines about the length and the batches, if there are few images.

    Args:
        given: The settings of the user, possibly without batch size.
        config: The same settings with batch size and length.
        images: Number of training images.
    """
    notes, batch = [], config.batch_size
    if given.batch_size is None and batch < BATCH:
        notes.append(f"batches of {batch} (--batch-size is not given)")
    elif batch > images:
        notes.append(f"each batch of {batch} has every image {batch / images:.1f} times (--batch-size)")
    repeats = config.min_steps * batch / (config.epochs * images)
    if config.steps is None and repeats > 1:
        notes.append(f"each epoch repeats the images {repeats:.1f} times, for {config.min_steps:,} steps (--min-steps)")
    return [f"small data: {'; '.join(notes)}"] if notes else []
