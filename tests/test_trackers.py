"""Weights & Biases and MLflow: what they are given, and that their failures end no run. The packages are fakes."""

import contextlib
import importlib.util
import json
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from etils import epath

from train.config import Config
from train.errors import Preempted, UserError
from train.run.records import Metrics
from train.run.trackers import check_tracker, tracking


@pytest.fixture
def wandb(monkeypatch):
    package = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


class FakeClient:
    """MLflow's client, which keeps what it is given."""

    def __init__(self):
        self.runs, self.params, self.metrics, self.statuses = [], {}, [], []

    def get_experiment_by_name(self, name):
        assert name == "vit-jax"

    def create_experiment(self, name):
        return "7"

    def create_run(self, experiment, run_name):
        self.runs.append((experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def update_run(self, run, status):
        self.statuses.append((run, status))

    set_terminated = update_run

    def log_batch(self, run, metrics=(), params=()):
        assert run == "abc"
        assert len(params) <= 100
        self.params |= dict(params)
        self.metrics += [(name, value, step) for name, value, _, step in metrics]


@pytest.fixture
def mlflow(monkeypatch):
    client = FakeClient()
    entities = SimpleNamespace(Param=lambda *fields: fields, Metric=lambda *fields: fields)
    package = SimpleNamespace(MlflowClient=lambda: client, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow", package)
    return client


def record(kind, workdir, step, error=None):
    """Write two records of a run in `workdir`, which ends with `error`; return the warnings."""
    said = []
    workdir = epath.Path(workdir)
    with (
        contextlib.suppress(*([type(error)] if error else [])),
        tracking(Config(track=kind), workdir, said.append) as send,
        contextlib.closing(Metrics(workdir, step, said.append, send)) as metrics,
    ):
        metrics.write(step + 1, "train", {"loss": 0.5, "lr": 0.1})
        metrics.write(step + 2, "eval", {"loss": 0.25})
        if error:
            raise error
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == step + 2
    return said


def test_wandb_gets_every_record_and_continues_the_same_run(wandb, tmp_path):
    assert record("wandb", tmp_path, 0, Preempted("saved")) == []
    assert record("wandb", tmp_path, 2) == []
    first, second = (call.kwargs for call in wandb.init.call_args_list)
    assert first["id"] == second["id"] == json.loads((tmp_path / "tracking.json").read_text())["wandb"]
    assert (first["resume"], first["dir"], first["name"]) == ("allow", str(tmp_path), tmp_path.name)
    assert (first["config"]["optim.lr"], first["config"]["seed"]) == (1e-3, 0)
    run = wandb.init.return_value
    logged = [(call.kwargs["step"], call.args[0]) for call in run.log.call_args_list]
    values = [{"train/loss": 0.5, "train/lr": 0.1}, {"eval/loss": 0.25}]
    assert logged == [(1, values[0]), (2, values[1]), (3, values[0]), (4, values[1])]
    assert [call.kwargs["exit_code"] for call in run.finish.call_args_list] == [143, 0]


def test_mlflow_gets_every_record_and_continues_the_same_run(mlflow, tmp_path):
    assert record("mlflow", tmp_path, 0, Preempted("saved")) == []
    assert record("mlflow", tmp_path, 2, ValueError("failed")) == []
    assert record("mlflow", tmp_path, 4) == []
    assert mlflow.runs == [("7", tmp_path.name)]
    assert (mlflow.params["optim.lr"], mlflow.params["seed"]) == ("0.001", "0")
    assert mlflow.metrics[:4] == [
        *(("train/loss", 0.5, 1), ("train/lr", 0.1, 1), ("eval/loss", 0.25, 2)),
        ("train/loss", 0.5, 3),
    ]
    assert [status for _, status in mlflow.statuses] == ["KILLED", "RUNNING", "FAILED", "RUNNING", "FINISHED"]
    assert {run for run, _ in mlflow.statuses} == {"abc"}


def test_a_tracker_that_fails_is_one_warning(wandb, tmp_path):
    said = "warning: --track wandb: no network; the run continues without it"
    for number, method in enumerate(("init", "init.return_value.log", "init.return_value.finish")):
        wandb.reset_mock(side_effect=True)
        wandb.configure_mock(**{f"{method}.side_effect": RuntimeError("no\nnetwork")})
        (workdir := tmp_path / str(number)).mkdir()
        assert record("wandb", workdir, 0) == [said]
    (tmp_path / "tracking.json").write_text("[]")
    (warning,) = record("wandb", tmp_path, 0)
    assert "tracking.json cannot be read" in warning


def test_a_missing_package_is_named(monkeypatch):
    check_tracker(None)
    folder = SimpleNamespace(origin=None)  # wandb/, in which wandb keeps its files
    for found in (None, folder):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(UserError, match=r'--track mlflow needs the package mlflow: pip install "vit-jax\[track\]"'):
            check_tracker("mlflow")
