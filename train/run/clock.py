"""Measure how long the devices compute, and how long they wait for input."""

import dataclasses
import queue
import threading
import time
from typing import Any

import jax

BOTTLENECK = 0.1  # share of the time from which waiting for input is called the bottleneck


@dataclasses.dataclass(frozen=True)
class Lap:
    """The time of the devices during some steps. Evaluations, checkpoints and records are left out.

    Attributes:
        steps: Number of steps.
        computing: Seconds in which they computed.
        waiting: Seconds in which they waited for a batch.
    """

    steps: int = 0
    computing: float = 0.0
    waiting: float = 0.0

    def __add__(self, other: "Lap") -> "Lap":
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Lap(*(a + b for a, b in zip(mine, others, strict=True)))

    @property
    def share(self) -> float:
        """The share of the time in which the devices waited for a batch."""
        return self.waiting / (self.computing + self.waiting)


class DeviceClock:
    """Notes when each step ends, in a thread, because the loop runs ahead of the devices and must not wait for them.

    Attributes:
        total: All steps so far.
    """

    def __init__(self):
        self.total = Lap()
        self._lap = Lap()
        self._lock = threading.Lock()
        self._steps = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def add(self, asked: float, given: float, results: Any) -> None:
        """Add a step that was dispatched.

        Args:
            asked: When its batch was asked for, by `time.perf_counter`.
            given: When the batch was there.
            results: Arrays that the step computes.
        """
        self._steps.put((asked, given, results))

    def lap(self) -> Lap:
        """The steps that have ended since the last call."""
        with self._lock:
            found, self._lap = self._lap, Lap()
        return found

    def close(self) -> None:
        """Wait for the last step."""
        self._steps.put(None)
        self._thread.join()

    def _watch(self) -> None:
        before = None  # the end of the step before; the first step has none
        while (step := self._steps.get()) is not None:
            asked, given, results = step
            try:
                jax.block_until_ready(results)
            except Exception:  # the loop gets the same error, and reports it
                return
            now = time.perf_counter()
            if before is not None:
                idle = max(before, asked)
                start = max(idle, given)
                lap = Lap(1, now - start, start - idle)
                with self._lock:
                    self._lap, self.total = self._lap + lap, self.total + lap
            before = now


def bottleneck(total: Lap, batch_size: int) -> str:
    """One line about the speed of a run and what limits it.

    Args:
        total: The steps of the run, at least one.
        batch_size: Images per step.
    """
    images = total.steps * batch_size
    run, step = images / (total.computing + total.waiting), images / total.computing
    waited = f"the devices waited {total.share:.0%} of the time for images"
    if total.share < BOTTLENECK:
        return f"{run:,.0f} images/s, limited by the training step: {waited}"
    return (
        f"{run:,.0f} images/s, limited by the input: {waited}; the step alone does {step:,.0f}. Smaller image files or "
        "more processors help"
    )
