"""Checkpoints of a run: the state together with the position in the data, written by Orbax in the background.

A checkpoint appears under its final name only once it is complete, so a run killed at any moment finds whole ones.
What happens to them afterwards is noticed by their checksums.
"""

import contextlib
import math
import numbers
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from train.cluster.processes import is_lead, is_loss
from train.config import CHECKPOINTS as FOLDER
from train.errors import UserError, one_line
from train.run.files import is_remote, orbax_path
from train.run.integrity import damage, seal
from train.run.json_files import from_json, read_json

ASIDE = "damaged"


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


def score(metrics: Mapping[str, float]) -> float:
    """The score of an evaluation, higher is better: accuracy, or for non-classifiers the negated loss.

    A checkpoint between evaluations has no metrics, and scores below every evaluated one.
    """
    return metrics.get("accuracy", -metrics["loss"]) if metrics else -math.inf


def step_of(name: str) -> int | None:
    """The step that a checkpoint's folder is named after, as Orbax writes it; None for other names."""
    return int(name) if re.fullmatch("0|[1-9][0-9]{0,17}", name) else None


def steps_of(workdir: os.PathLike | str) -> list[int]:
    """The steps of all complete checkpoints, in order."""
    folder = epath.Path(workdir) / FOLDER
    return sorted(step for p in folder.iterdir() if (step := step_of(p.name)) is not None) if folder.exists() else []


def last_step(workdir: os.PathLike | str) -> int | None:
    """The step of the latest checkpoint that was completed."""
    return max(steps_of(workdir), default=None)


def best_step(workdir: os.PathLike | str) -> int:
    """The step of the best checkpoint. Raises UserError where there is none, and where it is damaged."""
    folder = own_folder(workdir, FOLDER)
    scores = {}
    for step in steps_of(workdir):
        if _has_metrics(folder / str(step)):
            scores[step] = _read_score(folder / str(step))
    if not scores:
        raise UserError(f"{workdir} holds no checkpoint yet")
    best = max(scores, key=lambda step: (scores[step], step))
    if trouble := damage(folder / str(best)):
        raise UserError(f"the checkpoint {folder / str(best)} is damaged: {trouble}")
    return best


def own_folder(workdir: os.PathLike | str, name: str) -> epath.Path:
    """The folder `name` of a workdir; it need not exist. Raises UserError for a link, which could point outside."""
    folder = epath.Path(workdir) / name
    if not is_remote(folder) and os.path.lexists(folder) and not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise UserError(f"{folder} is not a folder (a workdir may be a link, but not what is in it)")
    return folder


def set_damaged_aside(workdir: os.PathLike | str, warn: Callable[[str], None]) -> int | None:
    """The step of the latest good checkpoint, None where a run is new. Later ones are moved out of the way.

    Call it on one process, before `open_checkpoints`. Raises UserError where all are damaged.
    """
    aside, checkpoints = own_folder(workdir, ASIDE), own_folder(workdir, FOLDER)
    found, last = 0, None
    if not checkpoints.exists():
        return None
    for folder in sorted(checkpoints.iterdir(), key=lambda p: (step_of(p.name) or 0, p.name), reverse=True):
        step = step_of(folder.name)
        if step is None and not folder.name.isdigit() and (is_remote(folder) or not os.path.islink(folder)):
            continue  # what saves leave that were killed, which Orbax removes
        found += 1
        trouble = _trouble(folder, step, older=last is not None)
        if trouble is None:
            last = step if last is None else last
            continue
        try:
            aside.mkdir(exist_ok=True)
            place = _free(aside / folder.name)
            folder.rename(place)
        except OSError as error:
            raise UserError(f"the checkpoint {folder} is damaged ({trouble}) and cannot be moved: {error}") from error
        warn(f"warning: the checkpoint {folder} is damaged ({trouble}): moved to {place}")
    if found and last is None:
        raise UserError(f"no checkpoint of {workdir} can be read; they are in {aside}. Start anew in another --workdir")
    return last


def _trouble(folder: epath.Path, step: int | None, older: bool) -> str | None:
    """The defect of a checkpoint, or None. Only the metrics are checked if it is `older` than a good one."""
    if not is_remote(folder) and os.path.islink(folder):
        return "it is a link"
    if not folder.is_dir():
        return "it is not a folder"
    if step is None:
        return "its name is not a step"
    # Orbax reads the metrics of all of them. A kill while it removes an old one leaves some of its files.
    if older and not _has_metrics(folder):
        return None
    if trouble := damage(folder, METRICS if older else ""):
        return trouble
    try:
        _read_score(folder)
    except UserError as error:
        return str(error)
    return None


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


METRICS = "metrics/metrics"  # in a checkpoint, as Orbax names it


def _place(folder: epath.Path) -> epath.Path:
    """`folder` by the name that the user knows, if `orbax_path` gave another."""
    return folder if is_remote(folder) else epath.Path(os.path.realpath(folder))


def _read_score(folder: epath.Path) -> float:
    """The score of a checkpoint. Raises UserError where its metrics are damaged."""
    metrics = read_json(folder / METRICS, dict[str, numbers.Real])
    if metrics and not math.isfinite(metrics.get("loss", math.nan)):
        raise UserError(f"{folder / METRICS} cannot be read: it has no loss")
    return score(metrics)


def _has_metrics(folder: epath.Path) -> bool:
    return (folder / METRICS).exists()


def _free(path: epath.Path) -> epath.Path:
    """`path`, or where something is there already, a name like it."""
    number, place = 1, path
    while place.exists():
        number += 1
        place = path.parent / f"{path.name}-{number}"
    return place
