"""Save the run and exit on SIGTERM, which schedulers send before preemption, and on Ctrl-C."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Preemption:
    """The request to save and exit, made by a signal.

    Attributes:
        signal: The signal, or None.
        saves: Whether there is state to save. While it is False, a signal ends the process at once, as a second Ctrl-C
            always does.
    """

    def __init__(self):
        self.signal: int | None = None
        self.saves = False
        self._interrupt = signal.getsignal(signal.SIGINT)

    def note(self, number: int, frame) -> None:
        """Handle SIGTERM or SIGINT; `number` and `frame` are the arguments of a signal handler."""
        if number == signal.SIGINT and (self.signal or not self.saves):
            self._interrupt(number, frame)
            return
        if not self.saves:
            _say("preempted: there is nothing to save")
            os._exit(128 + number)  # an exception could interrupt any library during start-up
        if number == signal.SIGINT:
            _say("interrupted: saving after this step, then exiting; press Ctrl-C again to exit at once")
        self.signal = self.signal or number
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's own handler tells the other processes

    def asked(self) -> bool:
        """Whether a single process will exit after this step; False with several, which must first agree on a step."""
        return jax.process_count() == 1 and self.signal is not None

    def reached(self, step: int) -> bool:
        """Whether to save and exit after `step`. Called by every process after every step; all get the same answer."""
        if jax.process_count() > 1:  # JAX's own handler makes all processes agree on a step
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked()


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # the signal may interrupt `print`, which cannot be called again


@contextlib.contextmanager
def listening() -> Iterator[Preemption]:
    """Context whose Preemption handles SIGTERM and SIGINT."""
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    # Shells start background jobs with SIGINT ignored; it remains ignored.
    heard = [signal.SIGINT] if callable(signal.getsignal(signal.SIGINT)) else []
    if jax.process_count() == 1:  # with several, JAX handles SIGTERM
        heard.append(signal.SIGTERM)
    before = {number: signal.signal(number, preemption.note) for number in heard}
    try:
        yield preemption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
