"""Worker processes of the data pipeline: if one dies the run stops, and if the run dies they exit."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable

import grain

from train.errors import Stopped

GRACE = 15.0  # seconds for Grain to notice a dead worker; it cannot if the worker died while it sent a message
NAME = "grain-process-prefetch"  # of Grain's workers
DIED = (
    "a data worker died; if the system killed it because memory ran out, use fewer --data.workers. "
    "The same command continues from the last checkpoint"
)


def die_with_parent(*_) -> None:
    """Make this worker exit when its parent process ends, even by SIGKILL.

    It ignores Ctrl-C, which a terminal also sends to workers: the run may need their batches until it has saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class Watched(grain.DatasetIterator):
    """An iterator over batches of workers that raises Stopped if a worker dies.

    If the iterator is blocked, because the worker left a message unfinished or a lock held, the process exits with the
    same message.

    Args:
        batches: The iterator over batches.
        end: Ends the process with an exit status.
    """

    def __init__(self, batches: grain.DatasetIterator, end: Callable[[int], None] = os._exit):
        super().__init__(batches)
        self._end = end
        self._done = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def __next__(self):
        try:
            return next(self._parent)
        except RuntimeError as error:
            if "terminated unexpectedly" in str(error):
                raise Stopped(DIED) from error
            raise

    def get_state(self):
        return self._parent.get_state()

    def set_state(self, state):
        self._parent.set_state(state)

    def close(self) -> None:
        self._parent.close()
        self._done.set()
        # The error that Grain raises at the end of the examples is in a reference cycle and refers to the last batch,
        # whose shared memory is freed only when the cycle is collected.
        gc.collect()

    def _watch(self) -> None:
        workers, dead = {}, None
        while not self._done.wait(GRACE if dead else 1.0):
            if dead:
                print(f"stopped: {DIED}", file=sys.stderr, flush=True)
                self._end(1)
                return
            workers |= {p.pid: p for p in multiprocessing.active_children() if p.name.startswith(NAME)}
            dead = next((p for p in workers.values() if p.exitcode not in (None, 0)), None)
