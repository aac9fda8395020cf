"""Initial weights of a run: a torch file (`--init`) or another run's encoder (`--init-from`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from train.build import DataInfo, load_weights
from train.config import Config
from train.run.stored import InitReport
from train.step import TrainState
from train.trunk import load_trunk
from vit_jax.objectives.protocol import Objective


class Initial(NamedTuple):
    """Loaded variables by collection, their `path` within the variables of the run, and a report for the user."""

    variables: PyTree
    path: tuple[str, ...]
    report: InitReport


def load_initial(config: Config, objective: Objective, info: DataInfo, state: TrainState) -> Initial | None:
    """Load the initial variables that `config` names; None if all variables are initialised at random.

    `state` may be abstract. Raises UserError for variables that cannot be read or do not fit.
    """
    if config.init:
        source, path = config.init, ()
        variables = load_weights(objective.model, config.init, config.init_prefix, info, "--init")
    elif config.init_from:
        source, path = config.init_from, objective.trunk_path
        variables = load_trunk(config.init_from, objective, state.params).variables
    else:
        return None
    every = _names({"params": state.params, "batch_stats": state.extras.get("batch_stats", {})})
    loaded = _names(variables, path)
    report = InitReport(source, tuple(sorted(loaded & every)), (), tuple(sorted(every - loaded)))
    return Initial(variables, path, report)


def started_from(state: TrainState, initial: Initial) -> TrainState:
    """A copy of the new `state` in which `initial` replaces variables, also in all averages of the parameters."""

    def replace(tree: PyTree, loaded: PyTree) -> PyTree:
        flat = flatten_dict(tree)
        for path, leaf in flatten_dict(loaded).items():
            place = initial.path + path
            flat[place] = jax.device_put(jnp.copy(leaf), flat[place].sharding)  # a train step donates its state
        return unflatten_dict(flat)

    loaded = {**initial.variables, "ema": initial.variables["params"]}
    extras = {name: replace(tree, loaded[name]) if name in loaded else tree for name, tree in state.extras.items()}
    average = None if state.ema is None else replace(state.ema, loaded["params"])
    return state.replace(params=replace(state.params, loaded["params"]), extras=extras, ema=average)


def _names(variables: PyTree, path: tuple[str, ...] = ()) -> set[str]:
    """Names such as "transformer/attn_0/to_out/kernel", or "batch_stats/norm/mean", of `variables` at `path`."""
    prefixes = {name: path if name == "params" else (name, *path) for name in variables}
    return {"/".join((*prefixes[name], *inner)) for name, *inner in flatten_dict(variables)}
