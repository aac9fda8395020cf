"""The folder of a run: claimed for one configuration, and never for another."""

import dataclasses
import json
from pathlib import Path

from train.build import DataInfo, read_run_file
from train.config import Config, UserError
from train.metrics import write_atomically


def claim_workdir(config: Config, info: DataInfo) -> Path:
    """The workdir of `config`, with a config.json that says so.

    Raises UserError when it cannot be written, or holds a run of another configuration (and names the difference).
    """
    workdir = Path(config.workdir)
    mine = {"config": dataclasses.asdict(config), "dataset": info._asdict()}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / "config.json").exists():
            write_atomically(workdir / "config.json", json.dumps(mine, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror or error}") from error

    there_config, there_info = read_run_file(workdir)
    there = {"config": dataclasses.asdict(there_config), "dataset": there_info._asdict()}
    differences = [
        f"{name} is {old[name]!r} there and {new[name]!r} here"
        for old, new in ((_flatten(there), _flatten(mine)),)
        for name in new
        if old[name] != new[name] and name != "workdir"
    ]
    if differences:
        raise UserError(
            f"--workdir {workdir} holds a run of another configuration: {'; '.join(differences)}. "
            "Pass the options it was started with to continue it, or another --workdir"
        )
    return workdir


def _flatten(run: dict) -> dict:
    """{"config": {"optim": {"lr": 1}}} to {"optim.lr": 1}."""
    flat = {}
    for name, value in {**run["config"], "dataset": run["dataset"]}.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat
