"""Learning-rate schedules and optimizers, in optax."""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from train.blocks import FIRST, LAST, block, blocks_of, names
from train.commandline.ranges import Range, check_values
from train.config import MOST_STEPS, Optim
from train.errors import UserError
from train.lora import SUBTREE
from train.partial import EVERYTHING, Partial


class Extension(NamedTuple):
    """A run became longer.

    Attributes:
        after: The last step with the learning rate of the run as it was before.
        total: The number of steps from then on.
        schedule: `stretch` for the learning rate of a run that has `total` steps from its beginning, or `constant`.
        lr: The constant learning rate.
    """

    after: Annotated[int, Range(0, MOST_STEPS)]
    total: Annotated[int, Range(1, MOST_STEPS)]
    schedule: Literal["stretch", "constant"]
    lr: Annotated[float, Range(1e-35, 1e35)] | None = None


def make_schedule(
    config: Optim, total_steps: int, steps_per_epoch: float, extensions: Sequence[Extension] = ()
) -> optax.Schedule:
    """Learning rate by step (from 0): a linear warm-up from zero to `config.lr`, then `config.schedule`.

    Args:
        config: The settings.
        total_steps: Length of the run, after which `cosine` and `linear` reach `config.final_lr`. A run shorter than
            the warm-up ends during the warm-up.
        steps_per_epoch: Optimizer steps per epoch.
        extensions: How the run became longer since, in order. Earlier steps keep their learning rates.

    Raises:
        UserError: If a value is out of range, or there are more than MOST_STEPS steps.
    """
    check_values(config, "optim.")
    schedule = _schedule(config, total_steps, steps_per_epoch)
    for extension in extensions:
        if extension.schedule == "constant":
            later = optax.constant_schedule(extension.lr)
        else:
            later = _schedule(config, extension.total, steps_per_epoch)
        schedule = _followed(schedule, later, extension.after)
    return schedule


def _followed(first: optax.Schedule, second: optax.Schedule, after: int) -> optax.Schedule:
    """`first` for steps 0 to `after` - 1, then `second`, which counts its steps from 0 too."""
    return lambda step: jnp.where(step < after, first(step), second(step))


def _schedule(config: Optim, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """The schedule of a run that was not extended."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    for what, steps in (("the run has", total_steps), ("--optim.warmup-epochs makes", warmup)):
        if steps > MOST_STEPS:
            raise UserError(f"{what} {steps:,} steps, {steps_per_epoch:g} an epoch; it must be at most {MOST_STEPS:,}")
    rest = max(total_steps - warmup, 1)
    shapes = {
        "cosine": optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr / config.lr),
        "linear": optax.linear_schedule(config.lr, config.final_lr, rest),
        "constant": optax.constant_schedule(config.lr),
        # `join_schedules` calls it with negative steps too.
        "rsqrt": lambda step: config.lr / jnp.sqrt(1 + jnp.maximum(step, 0) / max(warmup, 1)),
    }
    if not warmup:
        return shapes[config.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, config.lr, warmup), shapes[config.schedule]], [warmup])


def make_optimizer(
    config: Optim, schedule: optax.Schedule, params: PyTree, partial: Partial = EVERYTHING
) -> optax.GradientTransformation:
    """Gradient clipping and the optimizer that `config` names, with decoupled weight decay.

    Weight decay is decoupled for all optimizers: it does not enter the moments, and is scaled by the learning rate (for
    SGD: Loshchilov and Hutter 2017, arXiv:1711.05101).

    Args:
        config: The settings.
        schedule: Learning rate by step.
        params: All parameters, which may be abstract, since only their paths are used.
        partial: The part of them that is trained, for which the optimizer is.

    Raises:
        UserError: If a value is out of range.
    """
    check_values(config, "optim.")
    matrices = partial.trained(decay_mask(params))
    parts = {
        "adamw": [optax.scale_by_adam(config.beta1, config.beta2)],
        "sgd": [optax.trace(config.beta1, nesterov=True)],
        "lamb": [optax.scale_by_adam(config.beta1, config.beta2, eps=1e-6)],
        "lion": [optax.scale_by_lion(config.beta1, config.beta2)],
    }[config.name]
    if config.clip_norm:
        parts = [optax.clip_by_global_norm(config.clip_norm), *parts]
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, matrices))
    if config.name == "lamb":
        # |w| / |update| would keep biases near zero, where they start. The authors' code excludes them too.
        parts.append(optax.masked(optax.scale_by_trust_ratio(), matrices))
    if config.layer_decay < 1:
        scales = partial.trained(layer_scales(params, config.layer_decay))
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales)))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def decay_mask(params):
    """True for parameters with weight decay: weight matrices and filters, named `kernel`, and LoRA's matrices.

    Other parameters have none: `scale`, `bias`, tokens, positions, layer scales and mixes of heads.
    """
    is_matrix = lambda names: names[-1] == "kernel" or names[0] == SUBTREE
    return jax.tree_util.tree_map_with_path(lambda path, _: is_matrix(names(path)), params)


def layer_scales(params, layer_decay: float):
    """Factor of each parameter's update, `layer_decay ** (n + 1 - layer)` for n blocks (BEiT, arXiv:2106.08254).

    Layer 0 has the embeddings, layers 1 to n are the blocks, and layer n + 1 has the other parameters: the last norm
    and the heads.
    """
    order = blocks_of(params)
    layers = {FIRST: 0, **{b: i for i, b in enumerate(order, 1)}, LAST: len(order) + 1}
    scale = lambda path, _: layer_decay ** (len(order) + 1 - layers[block(names(path))])
    return jax.tree_util.tree_map_with_path(scale, params)
