"""SIGTERM, by which schedulers say that they take a machine away: noted here, seen by the loop between two steps."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

# 128 + SIGTERM, which shells and container runtimes report for a process that the signal ended. So what starts killed
# jobs again (Kubernetes' restartPolicy OnFailure, Slurm with RequeueExit=143) does so after our own exit too.
STATUS = 143


class Preempted(Exception):
    """The run was asked to leave, and has saved what it had."""


class Preemption:
    """Whether the run has been asked to leave.

    Until `saves` is set there is nothing to save, and the process ends at once.
    """

    def __init__(self):
        self._noted = threading.Event()
        self.saves = False

    def note(self, *_) -> None:
        """The signal's handler."""
        self._noted.set()
        if not self.saves:
            print("preempted: before the first step, so nothing is lost", file=sys.stderr, flush=True)
            os._exit(STATUS)  # an exception could come to light anywhere in what starts up

    def asked(self) -> bool:
        """Whether `reached` will be true, known within a step already. Several processes have to wait for it."""
        return jax.process_count() == 1 and self._noted.is_set()

    def reached(self, step: int) -> bool:
        """Whether the run saves and leaves after `step`. All processes ask after every step, and hear the same."""
        if jax.process_count() > 1:  # JAX has a handler of its own, and lets them agree on a step
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked()


@contextlib.contextmanager
def listening() -> Iterator[Preemption]:
    """A Preemption that SIGTERM tells, as long as this lasts."""
    preemption = Preemption()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    before = signal.signal(signal.SIGTERM, preemption.note)
    try:
        yield preemption
    finally:
        signal.signal(signal.SIGTERM, before)
