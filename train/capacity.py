"""Check that a run fits into memory: first by a lower bound, then by the compiler's figures for its steps."""

import math

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from train.build import DataInfo
from train.config import Config
from train.errors import UserError
from train.memory import device_memory, in_words
from train.program import Program


def check_memory(config: Config, info: DataInfo, program: Program, mesh: Mesh) -> None:
    """Raises UserError if the state and a batch of images exceed the memory of a device.

    Activations are not counted, so a run that passes may still be too large; `check_compiled` counts them.
    """
    available, sharing = device_memory(mesh)
    state = sharing * local_bytes((program.state, program.trained))  # gradients are sharded like parameters
    for option, size, batch in (
        ("--batch-size", config.batch_size, training_bytes(config, info)),
        ("--eval-batch-size", config.eval_batch_size, config.eval_batch_size * image_bytes(info)),
    ):
        batch = sharing * batch // (mesh.shape["data"] * mesh.shape["fsdp"])
        if state + batch > available:
            raise UserError(
                f"--model {config.model} needs {in_words(state)} for its state (parameters, gradients, averages and "
                f"optimizer state) and {option} {size} at least {in_words(batch)} for images, but there are only "
                f"{in_words(available)} of memory"
            )


def check_compiled(step: jax.stages.Compiled, what: str, config: Config, mesh: Mesh, kept: int = 0) -> None:
    """Raises UserError if a compiled step needs more memory than a device has.

    Args:
        step: The training or evaluation step.
        what: Description of the step for the message.
        config: The run's config.
        mesh: The devices that the step is compiled for.
        kept: Bytes that each device holds in addition to the step's arguments, results and temporaries.
    """
    available, sharing = device_memory(mesh)
    needed = step.memory_analysis()
    if needed is None:  # not every compiler reports it
        return
    passed = needed.argument_size_in_bytes + needed.output_size_in_bytes - needed.alias_size_in_bytes
    total = sharing * (passed + needed.temp_size_in_bytes + kept)
    if total > available:
        raise UserError(
            f"--model {config.model} needs {in_words(total)} for {what}, "
            f"but there are only {in_words(available)} of memory. {ADVICE}"
        )


ADVICE = (
    "Try --remat=full, a smaller --eval-batch-size, or in a new --workdir a smaller --batch-size or more "
    "--optim.accumulate"
)


def training_bytes(config: Config, info: DataInfo) -> int:
    """Bytes of a batch of images: all as stored, plus one accumulation slice padded for random crops and as float32."""
    height, width, channels = info.image_shape
    border, size = 2 * config.augment.crop_padding, np.dtype(info.pixels).itemsize
    padded = (height + border) * (width + border) * channels if border else 0
    plain = math.prod(info.image_shape)
    slice_bytes = size * padded + 4 * plain
    return config.batch_size * size * plain + config.batch_size // config.optim.accumulate * slice_bytes


def image_bytes(info: DataInfo) -> int:
    """Bytes of an image as stored and as float32."""
    return math.prod(info.image_shape) * (np.dtype(info.pixels).itemsize + 4)


def local_bytes(tree: PyTree) -> int:
    """Bytes per device of an abstract tree whose leaves have shardings."""
    local = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.numpy.dtype(leaf.dtype).itemsize
    return sum(map(local, jax.tree.leaves(tree)))
