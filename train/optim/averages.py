"""Averages of the parameters, which evaluation uses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree
from optax.contrib import ScheduleFreeState

from train.config import Optim

Average = Callable[[PyTree, PyTree, Any, Array], PyTree]


def make_average(config: Optim) -> Average | None:
    """The average that a run keeps: (average, params, opt_state, step) -> average; None if it keeps none.

    `params` and `opt_state` are those after the step, and `step` counts from 0.
    """
    if config.name == "schedule_free_adamw":
        return lambda average, params, opt_state, step: optax.contrib.schedule_free_eval_params(opt_state, params)
    return moving_average(config.ema) if config.ema else None


def moving_average(decay: float) -> Average:
    """Exponential moving average, with a smaller decay in early steps.

    Otherwise a short run would evaluate its initial parameters. The bound (1 + step) / (10 + step) is that of
    TensorFlow's ExponentialMovingAverage.
    """

    def average(old, params, opt_state, step):
        now = jnp.minimum(decay, (1 + step) / (10 + step))
        return jax.tree.map(lambda old, new: now * old + (1 - now) * new, old, params)

    return average


def restarted(opt_state: Any, params: PyTree) -> Any:
    """The initial `opt_state` for other initial `params`, of which a schedule-free optimizer has a copy."""
    if not isinstance(opt_state, ScheduleFreeState):
        return opt_state
    given = flatten_dict(params)
    return opt_state._replace(z=unflatten_dict({path: jnp.copy(given[path]) for path in flatten_dict(opt_state.z)}))
