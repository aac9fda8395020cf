"""Learning rate by step: warm-up, a schedule, and extensions of a run."""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
import optax

from train.commandline.ranges import Range, check_values
from train.config import MOST_STEPS, Optim
from train.errors import UserError


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
    """Learning rate by step (from 0): a linear warm-up from zero to `config.lr`, then `config.shape`.

    `wsd` decays linearly in the last share of the run (Hägele et al. 2024, arXiv:2405.18392, who find a share of 0.2
    sufficient).

    Args:
        config: The settings. The learning rate is not scaled; see `Optim.for_batches_of`.
        total_steps: Length of the run, after which `cosine`, `linear` and `wsd` reach `config.final_lr`. A run shorter
            than the warm-up ends during the warm-up.
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
    decay = min(max(round(config.decay_share * total_steps), 1), rest)
    constant = optax.constant_schedule(config.lr)
    shapes = {
        "cosine": optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr / config.lr),
        "linear": optax.linear_schedule(config.lr, config.final_lr, rest),
        "constant": constant,
        # `join_schedules` calls it with negative steps too.
        "rsqrt": lambda step: config.lr / jnp.sqrt(1 + jnp.maximum(step, 0) / max(warmup, 1)),
        "wsd": optax.join_schedules(
            [constant, optax.linear_schedule(config.lr, config.final_lr, decay)], [rest - decay]
        ),
    }
    if not warmup:
        return shapes[config.shape]
    return optax.join_schedules([optax.linear_schedule(0.0, config.lr, warmup), shapes[config.shape]], [warmup])
