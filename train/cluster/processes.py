"""The processes of one run: how they join, agree, and end together when one of them dies."""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.config import Config
from train.errors import Preempted, Stopped, UserError

# Seconds without a sign of life after which JAX takes a process for dead, and ends all others. That is for machines
# that freeze or lose their network: a process that dies closes its connections, which the next step notices at once.
HEARTBEAT = 60
AGAIN = "started again, all of them, they continue from the last checkpoint"
BYTES = 4096  # of what `on_lead` hands round


def is_lead() -> bool:
    """Whether this process is the one that speaks and writes for all."""
    return jax.process_index() == 0


def join(config: Config) -> None:
    """Join the other processes, where `config` names them or `--tpu` may find some. Raises UserError where it fails."""
    if config.coordinator is None and not config.tpu:
        return
    address = {}
    if config.coordinator not in (None, "auto"):
        address = dict(
            coordinator_address=config.coordinator, num_processes=config.processes, process_id=config.process
        )
    # Read on CPUs alone. It is the default of jax 0.7.2 and later, unless the environment says otherwise.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**address, heartbeat_timeout_seconds=HEARTBEAT)
    except ValueError as error:
        if config.coordinator is not None:
            raise UserError(f"--coordinator {config.coordinator}: {error}") from error  # with --tpu: a single host
    except RuntimeError as error:
        if "must be called before" not in str(error):  # JAX is not merely in use already, as it is in a notebook
            option = "--tpu" if config.coordinator is None else f"--coordinator {config.coordinator}"
            raise UserError(f"{option} could not join the other processes: {error}") from error


def on_lead(function: Callable[[], Any]) -> Any:
    """Call `function` on the lead process; all processes get its result (short, JSON-serialisable) or its UserError."""
    if jax.process_count() == 1:
        return function()
    told = {}
    if is_lead():
        try:
            told = {"result": function()}
        except UserError as error:
            told = {"error": str(error)}
    text = json.dumps(told).encode()[:BYTES].ljust(BYTES)
    told = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8)))))
    if "error" in told:
        raise UserError(told["error"])
    return told["result"]


def is_joined() -> bool:
    """Whether this process has been joined to others, even if they are none."""
    return jax.distributed.is_initialized()


def leave(status: int) -> NoReturn:
    """End this process at once. An orderly end would wait for others, which may be dead or wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_loss(error: BaseException) -> bool:
    """Whether `error` came from others having gone. They are told apart by their words: jaxlib raises several kinds."""
    words = ("Gloo", "coordination service", "UNAVAILABLE", "DEADLINE_EXCEEDED", "arrier")
    return jax.process_count() > 1 and (
        isinstance(error, jax.errors.JaxRuntimeError) or any(word in str(error) for word in words)
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what several processes do in step: one that cannot go on says why and ends at once.

    Else it would wait for the others in each thing that it closes, and they for it in their next step.
    """
    try:
        yield
    except Preempted:
        raise
    except BaseException as error:
        if not is_joined() or jax.process_count() == 1:
            raise
        status, line = 1, f"stopped: {error}"
        if isinstance(error, UserError):
            status, line = 2, f"error: {error}"
        elif isinstance(error, KeyboardInterrupt):
            status, line = 130, "interrupted: the same commands continue from the last checkpoint"
        elif is_loss(error):
            reason = " ".join(str(error).split())[:200]
            line = f"stopped: process {jax.process_index()} lost the others ({reason}); {AGAIN}"
        elif not isinstance(error, (Stopped, OSError)):
            traceback.print_exc()
            line = f"stopped: process {jax.process_index()} failed; {AGAIN}"
        print(line, file=sys.stderr)
        leave(status)
