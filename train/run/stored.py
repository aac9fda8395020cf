"""Load a run from its workdir: config.json, and the parameters of its best checkpoint."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float32, PyTree

from train.build import DataInfo, build_objective
from train.config import Config, without_former_defaults
from train.data.augment import normalize
from train.errors import UserError
from train.lora import merged
from train.optim import Extension, make_average, make_optimizer, make_schedule
from train.partial import make_partial
from train.run.checkpoint import open_checkpoints, restore
from train.run.files import reachable
from train.run.inventory import best_step
from train.run.json_files import read_json
from train.step import TrainState, abstract_params, init_state
from train.validation import check_options
from vit_jax.objectives.distill import Distill
from vit_jax.objectives.protocol import Objective
from vit_jax.objectives.supervised import Supervised


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
    """The content of config.json. `config` has the length that the run began with; `extensions` follow in order."""

    config: Config
    dataset: DataInfo
    init: InitReport = InitReport()
    extensions: tuple[Extension, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained run.

    `run = load_run("runs/photos")`, and then `run.predict("photo.jpg")` are the probabilities of its classes, and
    `jax.jit(run.model.apply)(run.variables, run.preprocess("photo.jpg")[None])` the outputs of its model.

    Attributes:
        config: Its settings.
        info: Properties of its data.
        objective: Its objective.
        params: The parameters of the objective; LoRA is merged.
        extras: All other state of the objective.
    """

    config: Config
    info: DataInfo
    objective: Objective
    params: PyTree
    extras: PyTree

    @property
    def model(self) -> nn.Module:
        """The trained model; see `model_variables`."""
        return model_variables(self)[0]

    @property
    def variables(self) -> PyTree:
        """The variables of `model`."""
        return model_variables(self)[1]

    def preprocess(self, image: os.PathLike | str) -> Float32[np.ndarray, "h w c"]:
        """Read an image file as an input of `model`: cropped, resized and normalised as in evaluation."""
        from train.data import image_to_input  # not at the top: decoding is slow to import

        info = self.info
        pixels = image_to_input(image, info.image_shape, self.config.data, info.mean, info.pixels)
        return np.asarray(normalize(pixels[None], info.mean, info.std)[0])

    @functools.cached_property
    def predict_pixels(self) -> Callable:
        """A jitted function from pixels of the run's type (b, h, w, c) to probabilities or numbers (b, k)."""
        from train.prediction import make_predict  # not at the top: it uses this module

        return make_predict(self)

    def predict(self, image: os.PathLike | str) -> dict[str, float]:
        """The probability of each class or label for an image file, the most probable first, or numbers by name.

        Raises:
            UserError: If the file is no image, or the run is no classifier.
        """
        from train.prediction import predict  # not at the top: it uses this module

        return predict(self, image)


def read_stored(workdir: os.PathLike | str) -> StoredRun:
    """Read config.json of `workdir`. Raises UserError if it is missing or invalid."""
    path = reachable(workdir) / "config.json"
    try:
        stored = read_json(path, StoredRun)
        found = stored._replace(config=without_former_defaults(stored.config))
        check_options(found.config)
        channels = found.dataset.image_shape[2]
        if any((extension.schedule == "constant") != (extension.lr is not None) for extension in found.extensions):
            raise UserError(f"{path}: extensions with the schedule constant, and no others, must have a number as lr")
        if not len(found.dataset.mean) == len(found.dataset.std) == channels:
            raise UserError(f"{path}: dataset.mean and dataset.std must have {channels} values, one for each channel")
    except UserError as error:
        raise UserError(f"{workdir} holds no run of this version: {error}") from error
    return found


def read_run_file(workdir: os.PathLike | str) -> RunFile:
    """The settings and the data of `workdir`. Raises UserError if config.json is missing or invalid."""
    stored = read_stored(workdir)
    return RunFile(stored.config, stored.dataset)


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

    For classes, labels and numbers it is the model with its head, for distillation the student without its token,
    otherwise the encoder.
    """
    if isinstance(run.objective, Supervised):
        return run.objective.model, {"params": run.params, **run.extras}
    trunk, variables = run.objective.trunk(run.params, run.extras)
    return run.objective.student if isinstance(run.objective, Distill) else trunk, variables


def abstract_state(config: Config, objective: Objective, info: DataInfo) -> TrainState:
    """The abstract state of a run, on one device."""

    partial = make_partial(config, objective, info.images)

    def init(key):
        params = abstract_params(objective, partial, key, info.images)
        optimizer = make_optimizer(config.optim, make_schedule(config.optim, 1, 1.0), params, partial)
        ema = make_average(config.optim) is not None
        return init_state(objective, optimizer, key, info.images, ema=ema, partial=partial)

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)
