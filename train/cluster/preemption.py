"""Save the run and exit on SIGTERM (sent by schedulers before preemption) and on Ctrl-C."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Whether the run has been asked to leave, and by which `signal`.

    Until `saves` is set there is nothing to save, and the signal ends the process at once. So does a second Ctrl-C.
    """

    def __init__(self):
        self.signal: int | None = None
        self.saves = False
        self._interrupt = signal.getsignal(signal.SIGINT)

    def note(self, number: int, frame) -> None:
        """The handler of both signals."""
        if number == signal.SIGINT and (self.signal or not self.saves):
            self._interrupt(number, frame)
            return
        if not self.saves:
            _say("preempted: before the first step, so nothing is lost")
            os._exit(128 + number)  # an exception could be raised anywhere during start-up
        if number == signal.SIGINT:
            _say("interrupted: saving after this step, then exiting; press Ctrl-C again to exit at once")
        self.signal = self.signal or number

    def asked(self) -> bool:
        """Whether `reached` will be true, known within a step already. Several processes have to wait for it."""
        return jax.process_count() == 1 and self.signal is not None

    def reached(self, step: int) -> bool:
        """Whether to save and exit after `step`. Called by every process after every step; all get the same answer."""
        if jax.process_count() > 1:  # JAX has a handler of its own, and lets them agree on a step
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked()


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # `print` may be at work already


@contextlib.contextmanager
def listening() -> Iterator[Preemption]:
    """Context with a Preemption that handles SIGTERM and SIGINT."""
    preemption = Preemption()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    # A shell starts background jobs with SIGINT ignored, which stays so.
    heard = [n for n in (signal.SIGTERM, signal.SIGINT) if n == signal.SIGTERM or callable(signal.getsignal(n))]
    before = {number: signal.signal(number, preemption.note) for number in heard}
    try:
        yield preemption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
