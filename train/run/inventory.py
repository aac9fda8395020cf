"""The checkpoints of a workdir: list them, find the best, and move damaged ones away."""

import math
import numbers
import os
import re
import stat
from collections.abc import Callable

from etils import epath

from train.config import CHECKPOINTS as FOLDER
from train.errors import UserError
from train.run.files import is_remote
from train.run.integrity import damage
from train.run.json_files import read_json
from train.scores import score

ASIDE = "damaged"  # folder in a workdir
METRICS = "metrics/metrics"  # Orbax's file in a checkpoint


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
    """The step of the best checkpoint. Raises UserError if there is none or it is damaged."""
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
        raise UserError(f"{folder} is not a folder (a workdir may be a link, but it must not contain links)")
    return folder


def set_damaged_aside(workdir: os.PathLike | str, warn: Callable[[str], None]) -> int | None:
    """Move damaged checkpoints away, and find the latest good one.

    Call it on one process, before `open_checkpoints`.

    Args:
        workdir: The workdir.
        warn: Shows a line to the user.

    Returns:
        The step of the latest good checkpoint; None if the run is new.

    Raises:
        UserError: If all checkpoints are damaged, or a damaged one cannot be moved.
    """
    aside, checkpoints = own_folder(workdir, ASIDE), own_folder(workdir, FOLDER)
    found, last = 0, None
    if not checkpoints.exists():
        return None
    for folder in sorted(checkpoints.iterdir(), key=lambda p: (step_of(p.name) or 0, p.name), reverse=True):
        step = step_of(folder.name)
        if step is None and not folder.name.isdigit() and (is_remote(folder) or not os.path.islink(folder)):
            continue  # a folder of an interrupted save, which Orbax removes
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
        raise UserError(
            f"no checkpoint of {workdir} can be read; they are in {aside}. Start again in another --workdir"
        )
    return last


def _trouble(folder: epath.Path, step: int | None, older: bool) -> str | None:
    """The defect of a checkpoint, or None. If it is `older` than a good one, only its metrics are checked."""
    if not is_remote(folder) and os.path.islink(folder):
        return "it is a link"
    if not folder.is_dir():
        return "it is not a folder"
    if step is None:
        return "its name is not a step"
    # Orbax reads the metrics of all checkpoints. A kill while it removes an old one leaves some of its files.
    if older and not _has_metrics(folder):
        return None
    if trouble := damage(folder, METRICS if older else ""):
        return trouble
    try:
        _read_score(folder)
    except UserError as error:
        return str(error)
    return None


def _read_score(folder: epath.Path) -> float:
    """The score of a checkpoint. Raises UserError if its metrics are damaged."""
    metrics = read_json(folder / METRICS, dict[str, numbers.Real])
    if metrics and not math.isfinite(metrics.get("loss", math.nan)):
        raise UserError(f"{folder / METRICS} cannot be read: it has no loss")
    return score(metrics)


def _has_metrics(folder: epath.Path) -> bool:
    return (folder / METRICS).exists()


def _free(path: epath.Path) -> epath.Path:
    """`path`, or if it exists, the first free name with a number appended."""
    number, place = 1, path
    while place.exists():
        number += 1
        place = path.parent / f"{path.name}-{number}"
    return place
