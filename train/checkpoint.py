"""Checkpoints of a run: the state together with the position in the data, written by Orbax in the background.

A checkpoint appears under its final name only once it is complete, so a run killed at any moment finds whole ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from train.config import UserError

FOLDER = "checkpoints"


def open_checkpoints(workdir: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """The manager of `workdir`'s checkpoints, which keeps the `keep` latest and the best by `score`.

    Without `keep` it only reads.
    """
    policies = [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(get_metric_fn=score, n=1),
    ]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        best_fn=score,
        read_only=keep is None,
    )
    return ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)


def score(metrics: Mapping[str, float]) -> float:
    """How good an evaluation is: its accuracy, or where nothing is told apart the loss, turned."""
    return metrics.get("accuracy", -metrics["loss"])


def save(manager: ocp.CheckpointManager, step: int, state: PyTree, data: Any, metrics: dict[str, float]) -> None:
    """Start to write `state` and `data` (the data iterator's JSON-able position) as the checkpoint of `step`."""
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data))
    manager.save(step, args=items, metrics=metrics)


def restore(manager: ocp.CheckpointManager, step: int, state: PyTree) -> tuple[PyTree, Any]:
    """The state and the data position of `step`. `state`: abstract, with shardings.

    Raises UserError for a checkpoint that is damaged or of another model.
    """
    items = ocp.args.Composite(state=ocp.args.StandardRestore(state), data=ocp.args.JsonRestore())
    try:
        restored = manager.restore(step, args=items)
    except (KeyError, OSError, ValueError) as error:
        folder = manager.directory / str(step)
        raise UserError(f"the checkpoint {folder} cannot be read; without that folder an older one is used") from error
    return restored["state"], restored["data"]
