"""Checkpoints of a run: the state together with the position in the data, written by Orbax in the background.

A checkpoint appears under its final name only once it is complete, so a run killed at any moment finds whole ones.
What happens to them afterwards is noticed by their checksums.
"""

import contextlib
import numbers
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from train.cluster.processes import is_lead, is_loss
from train.config import CHECKPOINTS as FOLDER
from train.errors import UserError, one_line
from train.run.files import is_remote, orbax_path
from train.run.integrity import seal
from train.run.inventory import score, step_of
from train.run.json_files import from_json


class Unsaved(OSError):
    """A checkpoint could not be written: most often, the disk is full."""


class Position(NamedTuple):
    """Progress of a run that is not part of its TrainState."""

    window: tuple[tuple[int, dict[str, numbers.Real]], ...]
    """(step, metrics) of the steps that are not in a training record yet."""
    records: int
    """Number of records in metrics.jsonl."""


def open_checkpoints(workdir: os.PathLike | str, keep: int | None = None) -> ocp.CheckpointManager:
    """The manager of `workdir`'s checkpoints, which keeps the `keep` latest and the best by `score`.

    Without `keep` it only reads.
    """
    folder = orbax_path(workdir) / FOLDER
    policies = [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(get_metric_fn=score, n=1),
    ]

    def seal_newest():
        # Orbax calls this when all is written and not yet renamed.
        if is_lead():
            saved = {step_of(p.name.partition(".orbax-checkpoint-tmp")[0]) or 0: p for p in folder.iterdir()}
            seal(saved[max(saved)], max(saved))

    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        best_fn=score,
        read_only=keep is None,
        cleanup_tmp_directories=keep is not None,  # what saves leave that were killed
        async_options=ocp.AsyncOptions(post_finalization_callback=seal_newest),
    )
    try:
        return ocp.CheckpointManager(folder, options=options)
    except Exception as error:  # Orbax reads its own small files, and raises many kinds
        raise UserError(f"the checkpoints in {_place(folder)} cannot be read: {one_line(error)}") from error


def save(
    manager: ocp.CheckpointManager, step: int, state: PyTree, position: Position, metrics: dict[str, float] | None
) -> None:
    """Start to write `state` and `position` as the checkpoint of `step`.

    `metrics` are those of the evaluation at this step, None between evaluations. The first checkpoint of a run is read
    back at once, so that a run does not continue for days with unreadable checkpoints. Raises Unsaved when this
    checkpoint or the one before it cannot be written.
    """
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(position._asdict()))
    first = manager.latest_step() is None
    _or_stop(lambda: manager.save(step, args=items, metrics=metrics or {}))
    if first:
        finish(manager)
        # Opens every array, but reads none: their bytes are covered by the checksums.
        _or_stop(lambda: manager.item_metadata(step))


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait until all is written. Raises Unsaved when it cannot be."""
    _or_stop(manager.wait_until_finished)


def _or_stop(action: Callable[[], Any]) -> None:
    try:
        action()
    except Exception as error:  # Orbax and tensorstore raise many kinds, full disks among them
        if is_loss(error):
            raise
        raise Unsaved(f"a checkpoint cannot be written: {one_line(error)}") from error


@contextlib.contextmanager
def closing(manager: ocp.CheckpointManager) -> Iterator[ocp.CheckpointManager]:
    """Close `manager` in the end. Raises Unsaved when something is left that cannot be written."""
    try:
        yield manager
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            manager.close()
        raise
    _or_stop(manager.close)


def restore(manager: ocp.CheckpointManager, step: int, state: PyTree) -> tuple[PyTree, Position]:
    """The state and the position of `step`. `state`: abstract, with shardings; another mesh than the one saved will do.

    Raises UserError for a checkpoint that is damaged, of another model or of another step.
    """
    place = _place(manager.directory / str(step))
    items = ocp.args.Composite(state=ocp.args.StandardRestore(state), data=ocp.args.JsonRestore())
    try:
        restored = manager.restore(step, args=items)
        position = from_json(restored["data"], Position)
    except Exception as error:  # see save
        raise UserError(f"the checkpoint {place} cannot be read: {one_line(error)}") from error
    if int(restored["state"].step) != step:
        raise UserError(f"the checkpoint {place} is that of step {int(restored['state'].step)}, renamed")
    return restored["state"], position


def _place(folder: epath.Path) -> epath.Path:
    """`folder` by the name that the user knows, if `orbax_path` gave another."""
    return folder if is_remote(folder) else epath.Path(os.path.realpath(folder))
