"""Where a run was computed: versions, devices, the commit of the working folder, and the memory that it took."""

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from typing import NamedTuple

import jax
from etils import epath

from train.errors import UserError
from train.run.files import write_atomically
from train.run.json_files import read_json
from vit_jax import __version__

FILE = "environment.json"


class Environment(NamedTuple):
    """Where a run was computed.

    Attributes:
        versions: Versions of Python and of packages.
        device: Number, kind and platform of the devices.
        commit: The git commit of the folder in which the run was started, "-dirty" with changes; None outside of git.
        memory: Largest number of bytes in use, of a device if it counts them, otherwise of the process; 0 if unknown.
        of_device: Whether the memory is that of a device.
    """

    versions: str = ""
    device: str = ""
    commit: str | None = None
    memory: int = 0
    of_device: bool = False


def environment() -> Environment:
    """Describe this process."""
    device = jax.local_devices()[0]
    names = ("jax", "flax", "optax")
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    return Environment(
        versions=f"vit-jax {__version__}, Python {platform.python_version()}, {packages}",
        device=f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        commit=commit(),
        memory=peak or peak_of_process(),
        of_device=peak > 0,
    )


def commit() -> str | None:
    """The git commit of the current folder; None outside of git or without git."""
    # A repository's own settings must not start programs: fsmonitor would.
    command = ["git", "-c", "core.fsmonitor=false", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()[:100] if done.returncode == 0 else None


def peak_of_process() -> int:
    """Largest number of bytes of memory that this process has used."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_environment(workdir: os.PathLike | str) -> None:
    """Write `environment()` into the workdir."""
    import json

    write_atomically(epath.Path(workdir) / FILE, json.dumps(environment()._asdict(), indent=2) + "\n")


def read_environment(workdir: os.PathLike | str) -> Environment:
    """The environment of the run in a workdir; an empty one for a run that has not stored it."""
    try:
        return read_json(epath.Path(workdir) / FILE, Environment)
    except UserError:
        return Environment()
