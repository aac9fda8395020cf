"""Load a run from its workdir: config.json, and the parameters of its best checkpoint."""

import contextlib
import os
from typing import NamedTuple

import jax
from flax import linen as nn
from jaxtyping import PyTree

from train.build import DataInfo, build_objective
from train.config import Config
from train.errors import UserError
from train.lora import merged
from train.optim import make_optimizer, make_schedule
from train.partial import make_partial
from train.run.checkpoint import open_checkpoints, restore
from train.run.files import reachable
from train.run.inventory import best_step
from train.run.json_files import read_json
from train.step import TrainState, abstract_params, init_state
from train.validation import check_options
from vit_jax.objectives.classify import Classify
from vit_jax.objectives.distill import Distill
from vit_jax.objectives.protocol import Objective


class InitReport(NamedTuple):
    """The source of a run's initial weights, and names of variables.

    Attributes:
        loaded: Those that were loaded.
        resampled: Those of them that were resampled to another image size.
        random: Those of the run that were not loaded.
        missing: Those of them that are not of a head.
        left_out: Those of the source that were not used.
    """

    source: str = ""
    loaded: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


class RunFile(NamedTuple):
    """The part of config.json that is needed to continue or load a run."""

    config: Config
    dataset: DataInfo


class StoredRun(NamedTuple):
    """The content of config.json."""

    config: Config
    dataset: DataInfo
    init: InitReport = InitReport()


class Run(NamedTuple):
    """A trained run: its config and data, and the parameters (LoRA is merged) and extras of its objective."""

    config: Config
    info: DataInfo
    objective: Objective
    params: PyTree
    extras: PyTree


def read_run_file(workdir: os.PathLike | str) -> RunFile:
    """Read config.json of `workdir`. Raises UserError if it is missing or invalid."""
    path = reachable(workdir) / "config.json"
    try:
        stored = read_json(path, StoredRun)
        found = RunFile(stored.config, stored.dataset)
        check_options(found.config)
        channels = found.dataset.image_shape[2]
        if not len(found.dataset.mean) == len(found.dataset.std) == channels:
            raise UserError(f"{path}: dataset.mean and dataset.std must have {channels} values, one for each channel")
    except UserError as error:
        raise UserError(f"{workdir} holds no run of this version: {error}") from error
    return found


def load_run(workdir: os.PathLike | str) -> Run:
    """Load the best checkpoint of a run. Raises UserError if there is none, or it cannot be read."""
    config, info = read_run_file(workdir)
    try:
        objective = build_objective(config, info)
    except UserError as error:
        raise UserError(f"{reachable(workdir) / 'config.json'}: {error}") from error
    try:
        step = best_step(workdir)
        manager = open_checkpoints(workdir)
    except OSError as error:
        raise UserError(f"{workdir} cannot be read: {error.strerror or error}") from error
    with contextlib.closing(manager):
        state, _ = restore(manager, step, abstract_state(config, objective, info))
    return Run(config, info, objective, merged(state.eval_params, config.lora), state.extras)


def model_variables(run: Run) -> tuple[nn.Module, PyTree]:
    """The model of a run, and its variables.

    For a classifier it is the classifier, for distillation the student without its token, otherwise the encoder.
    """
    if isinstance(run.objective, Classify):
        return run.objective.model, {"params": run.params, **run.extras}
    trunk, variables = run.objective.trunk(run.params, run.extras)
    return run.objective.student if isinstance(run.objective, Distill) else trunk, variables


def abstract_state(config: Config, objective: Objective, info: DataInfo) -> TrainState:
    """The abstract state of a run, on one device."""

    partial = make_partial(config, objective, info.images)

    def init(key):
        params = abstract_params(objective, partial, key, info.images)
        optimizer = make_optimizer(config.optim, make_schedule(config.optim, 1, 1.0), params, partial)
        return init_state(objective, optimizer, key, info.images, ema=config.optim.ema > 0, partial=partial)

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)
