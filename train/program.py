"""The jitted functions of a run, with the shapes and shardings of its state, built from a config without data.

`train.loop` runs them; `train.plan` compiles them for devices that need not exist.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from train.build import DataInfo
from train.config import Config
from train.data.augment import augment, normalize
from train.errors import UserError
from train.optim import Extension, make_average, make_optimizer, make_schedule
from train.partial import make_partial
from train.sharding import batch_sharding, replicated, state_sharding, working_sharding
from train.step import TrainState, abstract_params, init_state, make_eval_step, make_train_step
from vit_jax.layers.execution import execution
from vit_jax.objectives.protocol import Objective


class Program(NamedTuple):
    """Jitted functions of a run, and the shapes and shardings of their arguments.

    Attributes:
        new_state: Creates a sharded state from (key, images).
        train_step: The training step, (state, batch, frozen, seed=0); see `train.step`.
        eval_step: The evaluation step, (params, extras, batch); see `train.step`.
        state: The abstract state.
        trained: The abstract parameters that are trained.
        batch: The abstract training batch.
        schedule: Learning rate by step.
    """

    new_state: Callable
    train_step: Callable
    eval_step: Callable
    state: TrainState
    trained: PyTree
    batch: dict[str, jax.ShapeDtypeStruct]
    schedule: optax.Schedule


def build_program(
    config: Config,
    info: DataInfo,
    mesh: Mesh,
    objective: Objective,
    total: int,
    steps_per_epoch: float,
    extensions: Sequence[Extension] = (),
) -> Program:
    """Build the program of a run on `mesh` that begins with a length of `total` steps and has these `extensions`."""
    optim = config.optim.for_batches_of(config.batch_size)
    schedule = make_schedule(optim, total, steps_per_epoch, extensions)
    average = make_average(optim)
    inputs = init_inputs(config, info)
    partial = make_partial(config, objective, info.images)
    optimizer = make_optimizer(optim, schedule, abstract_params(objective, partial, *inputs), partial)

    def new_state(key, images):
        return init_state(objective, optimizer, key, images, ema=average is not None, partial=partial)

    state = with_sharding(jax.eval_shape(new_state, *inputs), mesh)
    resting = jax.tree.map(lambda x: x.sharding, state)
    working = working_sharding(jax.eval_shape(partial.merged, state.params), mesh)

    def gather(params):
        return jax.lax.with_sharding_constraint(params, working)

    train_step = make_train_step(
        objective,
        optimizer,
        prepare_training(config, info),
        dtype=config.dtype,
        accumulate=optim.accumulate,
        average=average,
        partial=partial,
        gather=gather,
    )
    eval_step = make_eval_step(objective, prepare_evaluation(info), dtype=config.dtype, partial=partial, gather=gather)
    train_step, eval_step = (executed(step, config, mesh) for step in (train_step, eval_step))
    return Program(
        new_state=jax.jit(new_state, out_shardings=resting),
        train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(resting, replicated(mesh))),
        eval_step=jax.jit(eval_step, out_shardings=replicated(mesh)),
        state=state,
        trained=partial.trained(state.params),
        batch=abstract_batch(config, info, mesh),
        schedule=schedule,
    )


def executed(step: Callable, config: Config, mesh: Mesh) -> Callable:
    """`step` with the execution settings of `config`.

    Tracing it raises UserError if the model does not support `config.remat` or `config.scan_blocks`.
    """

    def traced(*arguments):
        with execution(
            remat=config.remat,
            scan=config.scan_blocks,
            platform=mesh.devices.flat[0].platform,
            attention=config.attention,
            batch=batch_sharding(mesh),
        ) as settings:
            results = step(*arguments)
        if not settings.stacks and (config.scan_blocks or config.remat != "none"):
            raise UserError(f"{config.model} does not support --remat and --scan-blocks")
        return results

    return traced


def init_inputs(config: Config, info: DataInfo) -> tuple[jax.Array, jax.Array]:
    """The random key and the images from which a state is initialised."""
    return jax.random.key(config.seed), info.images


def prepare_training(config: Config, info: DataInfo) -> Callable:
    """A function from (key, batch) to augmented images and targets, on the device.

    Each fixed view is augmented separately, with a key that depends on the seed and the sample.
    """

    def prepare(key, batch):
        return augmented(key, batch["image"], batch["label"])

    def augmented(key, images, labels):
        return augment(key, images, targets_of(labels, info), config.augment, mean=info.mean, std=info.std)

    def prepare_views(_, batch):
        keys = jax.vmap(lambda sample: jax.random.fold_in(jax.random.key(config.seed), sample))(batch["sample"])
        one_by_one = jax.vmap(lambda key, image, label: augmented(key, image[None], label[None]))
        images, targets = one_by_one(keys, batch["image"], batch["label"])
        return images[:, 0], targets[:, 0]

    return prepare_views if config.distill.views else prepare


def prepare_evaluation(info: DataInfo) -> Callable:
    """A function from a batch to normalised images and targets, on the device."""

    def prepare(batch):
        return normalize(batch["image"], info.mean, info.std), targets_of(batch["label"], info)

    return prepare


def targets_of(labels: jax.Array, info: DataInfo) -> jax.Array:
    """The targets of the outputs of a model, float32 (b, k): classes one-hot, labels, or standardised numbers."""
    if info.target == "class":
        return jax.nn.one_hot(labels, len(info.class_names))
    if info.target == "multilabel":
        return labels
    mean, std = (jnp.asarray(values, jnp.float32)[None] for values in (info.target_mean, info.target_std))
    return (labels - mean) / std


def with_sharding(abstract: PyTree, mesh: Mesh) -> PyTree:
    """`abstract`, a state, with the sharding of every leaf."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract,
        state_sharding(abstract, mesh),
    )


def abstract_frozen(frozen: PyTree, mesh: Mesh) -> PyTree:
    """Shapes, types and shardings of frozen variables, which every device holds."""
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))
    return jax.tree.map(place, jax.eval_shape(lambda: frozen))


def abstract_seed(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Shape, type and sharding of the seed: an argument, so that runs with other seeds use the same program."""
    return jax.ShapeDtypeStruct((), np.uint32, sharding=replicated(mesh))


def abstract_batch(config: Config, info: DataInfo, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a training batch."""
    shapes = _shapes(config.batch_size, info)
    if config.distill.views:
        shapes["sample"] = ((config.batch_size,), np.int32)
    if config.distill.cache:
        shapes["teacher"] = ((config.batch_size, len(info.class_names)), np.float32)
    return _split(shapes, mesh)


def abstract_eval_batch(size: int, info: DataInfo, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch of `size` images for evaluation."""
    shapes = _shapes(size, info) | {"mask": ((size,), np.float32)}
    return _split(shapes, mesh)


def _shapes(size: int, info: DataInfo) -> dict[str, tuple]:
    """Shapes and types of `size` images and their labels."""
    label = ((size,), np.int32) if info.target == "class" else ((size, len(info.class_names)), np.float32)
    return {"image": ((size, *info.image_shape), info.pixels), "label": label}


def _split(shapes: dict[str, tuple], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    place = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=place) for name, (shape, dtype) in shapes.items()}
