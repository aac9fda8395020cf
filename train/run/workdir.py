"""The folder of a run. It belongs to one configuration."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from train.build import DataInfo
from train.cluster.processes import is_lead, on_lead
from train.config import MAY_CHANGE, Config, without_former_defaults
from train.data.fingerprint import FILE as FINGERPRINTS
from train.data.fingerprint import Fingerprint, changes, read_fingerprints, write_fingerprints
from train.errors import UserError
from train.optim import Extension
from train.paths import with_absolute_paths
from train.run.files import read_small, write_atomically
from train.run.inventory import last_step, set_damaged_aside
from train.run.lock import Lock, check_free
from train.run.stored import InitReport, read_run_file, read_stored
from vit_jax.printable import printable

NONE: Mapping[str, Fingerprint] = MappingProxyType({})


class Claim(NamedTuple):
    """A workdir that this run may write to, and the step that it continues from (0: it is new)."""

    workdir: epath.Path
    start: int
    lock: Lock | None

    def check(self) -> None:
        """Raises Stopped if another process has taken over the workdir."""
        if self.lock:
            self.lock.check()

    def close(self) -> None:
        if self.lock:
            self.lock.close()


def claim(
    config: Config,
    info: DataInfo,
    init: InitReport | None = None,
    *,
    fingerprints: Mapping[str, Fingerprint] = NONE,
    extensions: tuple[Extension, ...] = (),
) -> Claim:
    """Claim the workdir of `config` for this run, and move damaged checkpoints away. All processes must call it.

    Args:
        config: Config of the run.
        info: Properties of the data.
        init: Report on initial weights, if any.
        fingerprints: Fingerprints of the inputs by name.
        extensions: How the run became longer; a new one is recorded.

    Raises:
        UserError: If another run holds the workdir, if the inputs of this process differ from those of process 0, or
            for the same reasons as in `claim_workdir`.
    """
    locks: list[Lock] = []
    digests = {name: fingerprint.digest for name, fingerprint in fingerprints.items()}

    def lead() -> tuple[int, dict[str, str]]:
        try:
            epath.Path(config.workdir).mkdir(parents=True, exist_ok=True)
            locks.append(Lock(config.workdir))
        except OSError as error:
            raise _not_written(config.workdir, error) from error
        try:
            workdir = claim_workdir(config, info, init, fingerprints=fingerprints, extensions=extensions)
            start = set_damaged_aside(workdir, warn=lambda line: print(printable(line, None), file=sys.stderr)) or 0
            return start, digests
        except BaseException:
            locks.pop().close()
            raise

    start, of_lead = on_lead(lead)
    if different := [name for name in digests if digests[name] != of_lead.get(name)]:
        raise UserError(f"process {jax.process_index()} has other inputs than process 0: {', '.join(different)}")
    return Claim(epath.Path(config.workdir), start, locks[0] if is_lead() else None)


def claim_workdir(
    config: Config,
    info: DataInfo,
    init: InitReport | None = None,
    *,
    fingerprints: Mapping[str, Fingerprint] = NONE,
    extensions: tuple[Extension, ...] = (),
) -> epath.Path:
    """Create the workdir of `config`, with config.json and the fingerprints, or check those that it contains.

    Args:
        config: Config of the run.
        info: Properties of the data.
        init: Report on initial weights, stored in config.json.
        fingerprints: Fingerprints of the inputs by name.
        extensions: How the run became longer; a new one is recorded in config.json.

    Raises:
        UserError: If the workdir cannot be written, or contains a run of another configuration or with other inputs;
            the message names the differences.
    """
    workdir = epath.Path(config.workdir)
    mine = {"config": dataclasses.asdict(without_former_defaults(config)), "dataset": info._asdict()}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / "config.json").exists():
            start = {"init": init._asdict()} if init else {}
            write_fingerprints(workdir / FINGERPRINTS, fingerprints)
            write_atomically(workdir / "config.json", json.dumps(mine | start, indent=2) + "\n")
    except OSError as error:
        raise _not_written(workdir, error) from error

    _check_same(config, info)
    _check_fingerprints(workdir, fingerprints)
    if extensions != (recorded := read_stored(workdir).extensions):
        if extensions[:-1] != recorded:
            raise UserError(f"--workdir {workdir}: the run was extended by another process meanwhile; start again")
        _record(extensions, workdir)
    return workdir


def _record(extensions: tuple[Extension, ...], workdir: epath.Path) -> None:
    """Write `extensions` into config.json, whose other keys stay."""
    path = workdir / "config.json"
    try:
        stored = json.loads(read_small(path)) | {"extensions": [extension._asdict() for extension in extensions]}
        write_atomically(path, json.dumps(stored, indent=2) + "\n")
    except OSError as error:
        raise _not_written(workdir, error) from error


def check_continues(config: Config, info: DataInfo, fingerprints: Mapping[str, Fingerprint]) -> None:
    """Check that the run in the workdir, if there is one, can continue. All processes must call it.

    Nothing is written, so that it can be called long before `claim`, which checks again.

    Raises:
        UserError: If another process holds the workdir, or for the same reasons as in `claim_workdir`.
    """

    def lead() -> None:
        workdir = epath.Path(config.workdir)
        check_free(workdir)
        if not (workdir / "config.json").exists():
            return
        _check_same(config, info)
        if (workdir / FINGERPRINTS).exists():
            _check_fingerprints(workdir, fingerprints)

    on_lead(lead)


def is_finished(workdir: os.PathLike | str, total: int) -> bool:
    """Whether there is a checkpoint of step `total`, which may be damaged."""
    try:
        return (last_step(workdir) or 0) >= total
    except OSError:  # `claim` reports it
        return False


def _check_same(config: Config, info: DataInfo) -> None:
    """Raises UserError, with the differences, if the workdir contains a run of another configuration."""
    workdir = epath.Path(config.workdir)
    mine = {"config": dataclasses.asdict(without_former_defaults(config)), "dataset": info._asdict()}
    there_config, there_info = read_run_file(workdir)
    there = {"config": dataclasses.asdict(there_config), "dataset": there_info._asdict()}
    same = _flatten({"config": dataclasses.asdict(with_absolute_paths(there_config)), "dataset": there_info._asdict()})
    differences = [
        f"{name} is {old[name]!r} there and {new[name]!r} here"
        for old, new in ((_flatten(there), _flatten(mine)),)
        for name in new
        if new[name] not in (old[name], same[name]) and name not in MAY_CHANGE
    ]
    if differences:
        raise UserError(
            f"--workdir {workdir} holds a run of another configuration: {'; '.join(differences)}. "
            "Pass the options it was started with to continue it, or another --workdir"
        )


def _check_fingerprints(workdir: epath.Path, fingerprints: Mapping[str, Fingerprint]) -> None:
    """Raises UserError if the run in `workdir` began with other inputs. Missing fingerprints are written."""
    path = workdir / FINGERPRINTS
    if not path.exists():
        line = f"warning: {path} is missing: changes of the data since the run began go unnoticed"
        print(printable(line, None), file=sys.stderr)
        write_fingerprints(path, fingerprints)
    if found := changes(read_fingerprints(path), fingerprints):
        raise UserError(
            f"--workdir {workdir} holds a run that began with other inputs: {found}. "
            "Restore them to continue it, or pass another --workdir"
        )


def as_begun(config: Config, info: DataInfo) -> DataInfo:
    """`info`, with the measured numbers that the run in the workdir began with, if they are close to the new ones.

    They are measured on the training images, one of which may have become unreadable since. Such a run must be able to
    continue.
    """
    try:
        there = read_run_file(config.workdir).dataset
    except UserError:
        return info
    for names, scale in (
        (("mean", "std"), 1.0),
        (("target_mean", "target_std"), np.asarray(info.target_std)),
        (("class_weights",), np.asarray(info.class_weights)),
    ):
        pairs = [(np.asarray(getattr(there, name)), np.asarray(getattr(info, name))) for name in names]
        if all(old.shape == new.shape and np.all(abs(old - new) < 0.01 * scale) for old, new in pairs):
            info = info._replace(**{name: getattr(there, name) for name in names})
    return info


def _not_written(workdir: os.PathLike | str, error: OSError) -> UserError:
    where = f" ({error.filename})" if error.filename else ""
    return UserError(f"--workdir {workdir} cannot be written: {error.strerror or error}{where}")


def _flatten(run: dict) -> dict:
    """{"config": {"optim": {"lr": 1}}} to {"optim.lr": 1}."""
    flat = {}
    for name, value in {**run["config"], "dataset": run["dataset"]}.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat
