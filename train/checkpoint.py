"""Checkpoints of a run: the state together with the position in the data, written by Orbax in the background.

A checkpoint appears under its final name only once it is complete, so a run killed at any moment finds whole ones.
What happens to them afterwards is noticed by their checksums.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from train.config import CHECKPOINTS as FOLDER
from train.config import UserError
from train.distributed import is_lead, is_loss
from train.files import is_remote
from train.integrity import damage, seal

ASIDE = "damaged"


class Unsaved(OSError):
    """A checkpoint could not be written: most often, the disk is full."""


def open_checkpoints(workdir: os.PathLike | str, keep: int | None = None) -> ocp.CheckpointManager:
    """The manager of `workdir`'s checkpoints, which keeps the `keep` latest and the best by `score`.

    Without `keep` it only reads.
    """
    folder = epath.Path(workdir) / FOLDER
    folder = folder if is_remote(folder) else folder.resolve()
    policies = [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(get_metric_fn=score, n=1),
    ]

    def seal_newest():
        # Orbax calls this when all is written and not yet renamed.
        if is_lead():
            seal(max((p for p in folder.iterdir() if _step(p) is not None), key=_step))

    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        best_fn=score,
        read_only=keep is None,
        cleanup_tmp_directories=keep is not None,  # what saves leave that were killed
        async_options=ocp.AsyncOptions(post_finalization_callback=seal_newest),
    )
    return ocp.CheckpointManager(folder, options=options)


def score(metrics: Mapping[str, float]) -> float:
    """How good an evaluation is: its accuracy, or where nothing is told apart the loss, turned.

    A checkpoint between evaluations has no metrics, and is worse than any that was evaluated.
    """
    return metrics.get("accuracy", -metrics["loss"]) if metrics else -math.inf


def set_damaged_aside(workdir: os.PathLike | str, warn: Callable[[str], None]) -> int | None:
    """The step of the latest good checkpoint, None where a run is new. Later ones are moved out of the way.

    Call it on one process, before `open_checkpoints`. Raises UserError where all are damaged.
    """
    workdir, found, last = epath.Path(workdir), 0, None
    if not (workdir / FOLDER).exists():
        return None
    for folder in sorted((workdir / FOLDER).iterdir(), key=lambda p: _step(p) or 0, reverse=True):
        if not folder.name.isdigit():
            continue
        found += 1
        # Orbax reads the metrics of all of them. A kill while it removes an old one leaves some of its files.
        trouble = damage(folder) if last is None else damage(folder, "metrics/") if _has_metrics(folder) else None
        if trouble is None:
            last = int(folder.name) if last is None else last
            continue
        try:
            (workdir / ASIDE).mkdir(exist_ok=True)
            place = _free(workdir / ASIDE / folder.name)
            folder.rename(place)
        except OSError as error:
            raise UserError(f"the checkpoint {folder} is damaged ({trouble}) and cannot be moved: {error}") from error
        warn(f"warning: the checkpoint {folder} is damaged ({trouble}): moved to {place}")
    if found and last is None:
        raise UserError(
            f"no checkpoint of {workdir} can be read; they are in {workdir / ASIDE}. Start anew in another --workdir"
        )
    return last


def save(manager: ocp.CheckpointManager, step: int, state: PyTree, data: Any, metrics: dict[str, float] | None) -> None:
    """Start to write `state` and `data` (JSON-able: the position in the data, ...) as the checkpoint of `step`.

    `metrics` are those of the evaluation at this step, None between evaluations. Raises Unsaved when this checkpoint
    or the one before it cannot be written.
    """
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data))
    _or_stop(lambda: manager.save(step, args=items, metrics=metrics or {}))


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


def last_good(workdir: os.PathLike | str) -> int | None:
    """The step of the latest checkpoint that was completed."""
    folder = epath.Path(workdir) / FOLDER
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=None) if folder.exists() else None


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


def one_line(error: BaseException) -> str:
    """The message of `error` without the pages that tensorstore adds."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def restore(manager: ocp.CheckpointManager, step: int, state: PyTree) -> tuple[PyTree, Any]:
    """The state and the data of `step`. `state`: abstract, with shardings; another mesh than the one saved will do.

    Raises UserError for a checkpoint that is damaged or of another model.
    """
    items = ocp.args.Composite(state=ocp.args.StandardRestore(state), data=ocp.args.JsonRestore())
    try:
        restored = manager.restore(step, args=items)
    except Exception as error:  # see save
        raise UserError(f"the checkpoint {manager.directory / str(step)} cannot be read: {one_line(error)}") from error
    return restored["state"], restored["data"]


def _step(folder: epath.Path) -> int | None:
    """The step of a checkpoint, complete or not."""
    number = folder.name.partition(".")[0]
    return int(number) if number.isdigit() else None


def _has_metrics(folder: epath.Path) -> bool:
    return (folder / "metrics" / "metrics").exists()


def _free(path: epath.Path) -> epath.Path:
    """`path`, or where something is there already, a name like it."""
    number, place = 1, path
    while place.exists():
        number += 1
        place = path.parent / f"{path.name}-{number}"
    return place
