"""The processes of one run: joining, agreeing on a result, and ending together if one of them dies."""

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

# Seconds without a heartbeat after which JAX considers a process dead and ends all others. This is for machines that
# freeze or lose their network; a process that dies closes its connections, which fails the next step of the others.
HEARTBEAT = 60
AGAIN = "restart all processes to continue from the last checkpoint"
BYTES = 4096  # size of the message that `on_lead` broadcasts


def is_lead() -> bool:
    """Whether this process is process 0, which prints and writes files for all."""
    return jax.process_index() == 0


def join(config: Config) -> None:
    """Join the other processes that `config` asks for. Raises UserError on failure."""
    if config.coordinator is None and not config.tpu:
        return
    address = {}
    if config.coordinator not in (None, "auto"):
        address = dict(
            coordinator_address=config.coordinator, num_processes=config.processes, process_id=config.process
        )
    # Used on CPUs only. It is the default since jax 0.7.2, but the environment may have changed it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**address, heartbeat_timeout_seconds=HEARTBEAT)
    except ValueError as error:
        if config.coordinator is not None:
            raise UserError(f"--coordinator {config.coordinator}: {error}") from error  # --tpu may find a single host
    except RuntimeError as error:
        if "must be called before" not in str(error):  # in a notebook, JAX is already in use
            option = "--tpu" if config.coordinator is None else f"--coordinator {config.coordinator}"
            raise UserError(f"{option} could not join the other processes: {error}") from error


def on_lead(function: Callable[[], Any]) -> Any:
    """Call `function` on process 0. All processes get its result (short, JSON-serialisable) or its UserError."""
    if jax.process_count() == 1:
        return function()
    answer = {}
    if is_lead():
        try:
            answer = {"result": function()}
        except UserError as error:
            answer = {"error": str(error)}
    text = json.dumps(answer).encode()[:BYTES].ljust(BYTES)
    answer = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8)))))
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["result"]


def is_joined() -> bool:
    """Whether `join` has succeeded, possibly with no other process."""
    return jax.distributed.is_initialized()


def leave(status: int) -> NoReturn:
    """End this process at once: a normal exit waits for the others, which may be dead or wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_loss(error: BaseException) -> bool:
    """Whether other processes have gone, judged by the message of `error`: jaxlib raises several types of errors."""
    words = ("Gloo", "coordination service", "UNAVAILABLE", "DEADLINE_EXCEEDED", "arrier")
    return jax.process_count() > 1 and (
        isinstance(error, jax.errors.JaxRuntimeError) or any(word in str(error) for word in words)
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Context for work that several processes do together: a process that fails prints the reason and exits at once.

    Otherwise it would wait for the others when it closes its resources, and they for it in their next step.
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
