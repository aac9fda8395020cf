"""Checkpoints of a run: the state and the progress of the run, written by Orbax in the background.

A checkpoint gets its final name only once it is complete, so after a kill at any moment all named checkpoints are
complete. Checksums detect later damage.
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
from train.run.inventory import step_of
from train.run.json_files import from_json
from train.scores import score


class Unsaved(OSError):
    """A checkpoint cannot be written, in most cases because the disk is full."""


class Position(NamedTuple):
    """Progress of a run that is not part of its TrainState."""

    window: tuple[tuple[int, dict[str, numbers.Real]], ...]
    """(step, metrics) of the steps that are not in a training record yet."""
    records: int
    """Number of records in metrics.jsonl."""


def open_checkpoints(workdir: os.PathLike | str, keep: int | None = None) -> ocp.CheckpointManager:
    """Open the checkpoints of a workdir.

    Args:
        workdir: The workdir.
        keep: Number of latest checkpoints to keep, in addition to the best by `score`; None: read only.

    Raises:
        UserError: If Orbax cannot read its metadata.
    """
    folder = orbax_path(workdir) / FOLDER
    policies = [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(get_metric_fn=score, n=1),
    ]

    def seal_newest():
        # Orbax calls this when everything is written, before it renames the folder.
        if is_lead():
            saved = {step_of(p.name.partition(".orbax-checkpoint-tmp")[0]) or 0: p for p in folder.iterdir()}
            seal(saved[max(saved)], max(saved))

    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        best_fn=score,
        read_only=keep is None,
        cleanup_tmp_directories=keep is not None,  # folders of interrupted saves
        async_options=ocp.AsyncOptions(post_finalization_callback=seal_newest),
    )
    try:
        return ocp.CheckpointManager(folder, options=options)
    except Exception as error:  # Orbax raises many types of errors for damaged metadata
        raise UserError(f"the checkpoints in {_place(folder)} cannot be read: {one_line(error)}") from error


def save(
    manager: ocp.CheckpointManager, step: int, state: PyTree, position: Position, metrics: dict[str, float] | None
) -> None:
    """Start to write a checkpoint.

    The metadata of the first checkpoint of a run is read back at once, so that a run cannot continue for days with
    unreadable checkpoints.

    Args:
        manager: The checkpoints of the run.
        step: The step of the state.
        state: The state.
        position: Progress of the run.
        metrics: Metrics of the evaluation after this step; None between evaluations.

    Raises:
        Unsaved: If this checkpoint or the previous one cannot be written.
    """
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(position._asdict()))
    first = manager.latest_step() is None
    _or_stop(lambda: manager.save(step, args=items, metrics=metrics or {}))
    if first:
        finish(manager)
        # Opens every array without reading it; the checksums cover the bytes.
        _or_stop(lambda: manager.item_metadata(step))


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait until everything is written. Raises Unsaved if something cannot be written."""
    _or_stop(manager.wait_until_finished)


def _or_stop(action: Callable[[], Any]) -> None:
    try:
        action()
    except Exception as error:  # Orbax and tensorstore raise many types of errors, also for full disks
        if is_loss(error):
            raise
        raise Unsaved(f"a checkpoint cannot be written: {one_line(error)}") from error


@contextlib.contextmanager
def closing(manager: ocp.CheckpointManager) -> Iterator[ocp.CheckpointManager]:
    """Context that closes `manager` at its end. Raises Unsaved if the rest cannot be written."""
    try:
        yield manager
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to report
            manager.close()
        raise
    _or_stop(manager.close)


def restore(manager: ocp.CheckpointManager, step: int, state: PyTree) -> tuple[PyTree, Position]:
    """Read a checkpoint.

    Args:
        manager: The checkpoints of the run.
        step: The step of the checkpoint.
        state: The abstract state, with shardings; the mesh may differ from that of the saved state.

    Raises:
        UserError: If the checkpoint is damaged, or belongs to another model or another step.
    """
    place = _place(manager.directory / str(step))
    items = ocp.args.Composite(state=ocp.args.StandardRestore(state), data=ocp.args.JsonRestore())
    try:
        restored = manager.restore(step, args=items)
        position = from_json(restored["data"], Position)
    except Exception as error:  # as in _or_stop
        raise UserError(f"the checkpoint {place} cannot be read: {one_line(error)}") from error
    if int(restored["state"].step) != step:
        raise UserError(f"the checkpoint {place} is that of step {int(restored['state'].step)}, renamed")
    return restored["state"], position


def _place(folder: epath.Path) -> epath.Path:
    """`folder` by its real name, where `orbax_path` returned another path to it."""
    return folder if is_remote(folder) else epath.Path(os.path.realpath(folder))
