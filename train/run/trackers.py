"""Send a run's settings and metrics to Weights & Biases or MLflow (`--track`), in addition to metrics.jsonl.

A tracker that fails is a warning, and never ends a run.
"""

import contextlib
import importlib.util
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from train.cluster.processes import is_lead
from train.config import Config
from train.errors import Preempted, UserError, one_line
from train.run.command import flat
from train.run.files import is_remote, write_atomically
from train.run.json_files import read_json

FILE = "tracking.json"  # in a workdir: the tracker's id of the run, which a continued run uses again
PROJECT = "vit-jax"

Send = Callable[[int, Mapping[str, float]], None]


class Wandb:
    """Weights & Biases. Its environment variables apply: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY, ..."""

    def __init__(self, workdir: epath.Path, settings: dict[str, Any], known: str | None):
        import wandb

        self.id = known or secrets.token_hex(8)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.id,
            resume="allow",
            name=workdir.name,
            dir=None if is_remote(workdir) else os.fspath(workdir),
            config=settings,
            settings=wandb.Settings(console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of a step; Weights & Biases ignores steps that it already has."""
        self._run.log(dict(values), step=step)

    def close(self, error: BaseException | None) -> None:
        """End the run, for the reason `error` if any; it may continue later."""
        self._run.finish(exit_code=getattr(error, "status", 1) if error else 0)


class MLflow:
    """MLflow. Its environment variables apply: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ..."""

    def __init__(self, workdir: epath.Path, settings: dict[str, Any], known: str | None):
        import mlflow

        self._client, self._entities = mlflow.MlflowClient(), mlflow.entities
        if known:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self.id = self._client.create_run(number, run_name=workdir.name).info.run_id
        params = [self._entities.Param(key, str(value)) for key, value in settings.items()]
        for first in range(0, len(params), 100):  # the most that MLflow takes at once
            self._client.log_batch(self.id, params=params[first : first + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, error: BaseException | None) -> None:
        stopped = isinstance(error, Preempted | KeyboardInterrupt)
        self._client.set_terminated(self.id, "KILLED" if stopped else "FAILED" if error else "FINISHED")


Tracker = Wandb | MLflow
TRACKERS: dict[str, Callable[..., Tracker]] = {"wandb": Wandb, "mlflow": MLflow}


def check_tracker(kind: str | None) -> None:
    """Raises UserError if the package of a tracker is not installed."""
    # A folder of the tracker's name, which wandb creates, is found too; it has no origin.
    found = importlib.util.find_spec(kind) if kind else None
    if kind and (found is None or found.origin is None):
        raise UserError(f'--track {kind} needs the package {kind}: pip install "vit-jax[track]"')


@contextlib.contextmanager
def tracking(config: Config, workdir: epath.Path, warn: Callable[[str], None]) -> Iterator[Send]:
    """Context that gives a function of (step, values), which sends them to the run's tracker, if it has one.

    Args:
        config: The settings.
        workdir: The claimed workdir.
        warn: Shows a line to the user.
    """
    tracker: Tracker | None = None

    @contextlib.contextmanager
    def warning() -> Iterator[None]:
        nonlocal tracker
        try:
            yield
        except Exception as error:
            tracker = None
            warn(f"warning: --track {config.track}: {one_line(error)}; the run continues without it")

    def send(step: int, values: Mapping[str, float]) -> None:
        if tracker:
            with warning():
                tracker.log(step, values)

    reason: BaseException | None = None
    if config.track and is_lead():
        with warning():
            tracker = open_tracker(config, workdir)
    try:
        yield send
    except BaseException as error:
        reason = error
        raise
    finally:
        if tracker:
            with warning():
                tracker.close(reason)


def open_tracker(config: Config, workdir: epath.Path) -> Tracker:
    """Begin or continue the run in its tracker, and store its id in the workdir."""
    path = workdir / FILE
    known = read_json(path, dict[str, str]) if path.exists() else {}
    settings = {name: value for name, value in flat(config).items() if value is not None}
    tracker = TRACKERS[config.track](workdir, settings, known.get(config.track))
    write_atomically(path, json.dumps(known | {config.track: tracker.id}) + "\n")
    return tracker
