"""Turn errors of the disk and of device memory into messages of one line."""

import contextlib
import os
from collections.abc import Iterator

import jax

from train.capacity import ADVICE
from train.errors import Stopped
from train.run.inventory import last_step


def last_usable_checkpoint(workdir: os.PathLike | str) -> str:
    """Describe the last usable checkpoint of a workdir."""
    last = last_step(workdir)
    return f"In {workdir} " + (f"the last good checkpoint is step {last}" if last else "there is no checkpoint yet")


@contextlib.contextmanager
def disk_trouble(workdir: os.PathLike | str) -> Iterator[None]:
    """Context for everything that writes to a workdir: an OSError, such as of a full disk, becomes Stopped."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise Stopped(f"{error.strerror or error}{where}. {last_usable_checkpoint(workdir)}") from error


@contextlib.contextmanager
def memory_trouble(workdir: os.PathLike | str) -> Iterator[None]:
    """Context for everything that devices compute: exhausted device memory becomes Stopped."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise Stopped(f"memory ran out ({reason}). {last_usable_checkpoint(workdir)}. {ADVICE}") from error
