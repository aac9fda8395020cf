"""Initial variables of a run: weights of any source (`--init`), or those without their head (`--init-from`)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from train.build import DataInfo
from train.config import Config
from train.errors import UserError
from train.fitting import RESAMPLED_LEAVES, Path, fit
from train.lora import without_matrices
from train.optim import restarted
from train.run.stored import InitReport
from train.step import TrainState
from train.stored_weights import load_stored, patches
from vit_jax.objectives.protocol import Objective


class Initial(NamedTuple):
    """Loaded variables by collection, their `path` within the variables of the run, and a report for the user."""

    variables: PyTree
    path: tuple[str, ...]
    report: InitReport


def load_initial(config: Config, objective: Objective, info: DataInfo, state: TrainState) -> Initial | None:
    """Load the initial variables that `config` names; None if all variables are initialised at random.

    Variables of equal shape are kept, and learned positions are resampled. A head for other classes is new.
    `state` may be abstract. Raises UserError for variables that cannot be read or do not fit.
    """
    option, source = ("--init", config.init) if config.init else ("--init-from", config.init_from)
    if source is None:
        return None
    state = state.replace(params=without_matrices(state.params))  # LoRA's are always new
    trunk, _ = objective.trunk(state.params, state.extras)
    path = objective.trunk_path
    wanted = _below(path, state)
    of_trunk = flatten_dict(jax.eval_shape(trunk.init, jax.random.key(0), info.images)).keys()
    head = wanted.keys() - of_trunk

    stored = load_stored(source, option, config, trunk, info)
    keeps_head = option == "--init" and stored.class_names in (None, info.class_names)
    loaded = {name: leaf for name, leaf in stored.variables.items() if keeps_head or name not in head}
    try:
        fitted = fit(loaded, wanted, head=head, old=stored.grid, new=patches(trunk, info))
    except ValueError as error:
        raise UserError(f"{option} {source} does not fit this model: {error}") from error
    missing = (of_trunk & wanted.keys()) - fitted.variables.keys()
    if 2 * len(missing) > len(of_trunk):
        raise UserError(
            f"{option} {source} does not fit this model: it lacks {len(missing)} of the {len(of_trunk)} variables of "
            f"the encoder, such as {'/'.join(min(missing)[1:])}"
        )

    kept = {_name(name, path) for name in fitted.variables}
    resampled = (
        {name for name in fitted.variables if name[-1] in RESAMPLED_LEAVES} if stored.resampled else fitted.resampled
    )
    report = InitReport(
        source,
        loaded=tuple(sorted(kept)),
        resampled=tuple(sorted(_name(name, path) for name in resampled)),
        random=tuple(sorted({_name(name) for name in _below((), state)} - kept)),
        left_out=tuple(sorted(_name(name) for name in stored.variables.keys() - fitted.variables.keys())),
        missing=tuple(sorted(_name(name, path) for name in missing)),
    )
    return Initial(unflatten_dict(fitted.variables), path, report)


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
    params = replace(state.params, loaded["params"])
    opt_state = restarted(state.opt_state, params)
    return state.replace(params=params, extras=extras, opt_state=opt_state, ema=average)


def _below(path: tuple[str, ...], state: TrainState) -> dict[Path, Any]:
    """The parameters and running statistics below `path`, by a path that begins with the collection."""
    found = {}
    for collection, tree in (("params", state.params), ("batch_stats", state.extras.get("batch_stats", {}))):
        for name in path:
            tree = tree.get(name, {})
        found |= {(collection, *inner): leaf for inner, leaf in flatten_dict(tree).items()}
    return found


def _name(name: Path, path: tuple[str, ...] = ()) -> str:
    """A name such as "transformer/attn_0/to_out/kernel" or "batch_stats/norm/mean", for a variable below `path`."""
    collection, *inner = name
    return "/".join((*path, *inner) if collection == "params" else (collection, *path, *inner))
