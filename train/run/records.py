"""Records of a run's metrics: one per line in metrics.jsonl, and the same values as TensorBoard events."""

import io
import json
import math
import numbers
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jaxtyping import Array

from train.cluster.processes import is_lead
from train.errors import Diverged
from train.run.clock import Lap
from train.run.events import Event, EventsWriter, SessionLog, Summary
from train.run.files import StagedDirectory, is_remote, open_regular, write_atomically
from train.run.json_files import parse_json
from train.run.progress import Progress


def check_finite(loss: float, where: str) -> None:
    """Raises Diverged unless `loss` is a finite number."""
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} {where}")


def read_records(workdir: os.PathLike | str) -> list[dict[str, Any]]:
    """The records of metrics.jsonl. Invalid lines, such as a last line that a kill cut off, are ignored."""
    return [record for record in _records(workdir) if record]


def _records(workdir: os.PathLike | str) -> Iterator[dict[str, Any] | None]:
    """Yield the record of each complete line of metrics.jsonl, or None for an invalid line.

    Raises OSError if it is not a regular file.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return
    with io.BytesIO(path.read_bytes()) if is_remote(path) else open(open_regular(path), "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield _record(line)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line, dict[str, numbers.Real | str])
    except ValueError:
        return None
    typed = all(isinstance(value, str) == (name == "split") for name, value in record.items())
    return record if typed and "split" in record and type(record.get("step")) is int else None


class Metrics:
    """The writer of a workdir's metrics. Only process 0 writes.

    Args:
        workdir: The workdir.
        step: The step that the run continues from; records of later steps are removed, because the run repeats them.
        warn: Shows a line about invalid lines to the user.
        send: Gets a copy of every record, as (step, values by SPLIT/NAME).

    Attributes:
        records: Number of records so far.
    """

    def __init__(
        self,
        workdir: os.PathLike | str,
        step: int,
        warn: Callable[[str], None] = print,
        send: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
    ):
        self.records = 0
        self._send = send
        if not is_lead():
            return
        found = list(_records(workdir))
        if None in found:
            name = epath.Path(workdir) / "metrics.jsonl"
            warn(f"warning: {found.count(None):,} lines of {name} are no records: they are left out")
        kept = [json.dumps(record) + "\n" for record in found if record and record["step"] <= step]
        self.records = len(kept)
        self._staged = StagedDirectory(workdir)
        path = self._staged.path / "metrics.jsonl"
        write_atomically(path, "".join(kept))
        self._lines = open(open_regular(path, os.O_WRONLY | os.O_APPEND), "a", buffering=1)  # noqa: SIM115, closed by `close`
        # Not tensorboardX's SummaryWriter: a full disk ends the thread in which it writes, and it then waits forever.
        # EventsWriter opens its file by name. The name is random, so that no link can exist under it.
        self._events = EventsWriter(str(self._staged.path / "events"), f".{secrets.token_hex(8)}")
        self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write the record {"step": step, "split": split, **values}."""
        if not is_lead():
            return
        self._lines.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self.records += 1
        tagged = {f"{split}/{name}": value for name, value in values.items()}
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in tagged.items()]
        self._events.write_event(Event(step=step, wall_time=time.time(), summary=Summary(value=scalars)))
        self._send(step, tagged)

    def publish(self) -> None:
        """Bring the files in the workdir up to date. Call it before a checkpoint is saved."""
        if is_lead():
            self._events.flush()
            self._staged.publish()

    def close(self) -> None:
        if is_lead():
            self._lines.close()
            self._events.close()
            self._staged.close()


class TrainLog:
    """Write means of the training metrics over windows of steps.

    The values of a window are fetched one step late, while the device computes the next step. The methods raise
    Diverged if a loss is not finite.

    Args:
        metrics: The writer of records.
        progress: The progress bar.
        schedule: Learning rate by step.
        batch_size: Images per step, for the speed.
        window: Number of steps per record.
        begun: (step, metrics) of the steps of an unfinished window, from `pause`.
        lap: Returns the time of the devices since the last call; see `DeviceClock`.
    """

    def __init__(
        self,
        metrics: Metrics,
        progress: Progress,
        schedule: Callable,
        batch_size: int,
        window: int,
        begun: Sequence = (),
        lap: Callable[[], Lap] = Lap,
    ):
        self._metrics, self._progress = metrics, progress
        self._schedule = jax.jit(schedule)  # a dozen operations, each of which would be compiled by itself
        self._batch_size, self._length, self._lap = batch_size, window, lap
        self._window: list[tuple[int, Mapping[str, Array | float]]] = [(step, values) for step, values in begun]
        self._due: list[tuple[int, Mapping[str, Array]]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude the time since the last window from the speed."""
        self._since = time.perf_counter()

    def add(self, step: int, values: Mapping[str, Array]) -> None:
        """Add the metrics of a step that has just been dispatched."""
        self._progress.advance(step)
        if self._due:
            self._write(self._due)
        self._window.append((step, values))
        self._due = []
        if len(self._window) == self._length:
            self._due, self._window = self._window, []

    def flush(self) -> None:
        """Write all remaining records, without waiting for another step."""
        for steps in (self._due, self._window):
            if steps:
                self._write(steps)
        self._due, self._window = [], []

    def pause(self) -> list[tuple[int, dict[str, float]]]:
        """Write finished windows, and return the unfinished one, as the argument `begun` of a later TrainLog."""
        if self._due:
            self._write(self._due)
        self._due = []
        return [(step, {name: float(value) for name, value in values.items()}) for step, values in self._window]

    def _write(self, window: list[tuple[int, Mapping[str, Array | float]]]) -> None:
        fetched = jax.device_get([values for _, values in window])
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        for (step, _), values in zip(window, fetched, strict=True):
            check_finite(float(values["loss"]), f"at step {step}")
        last = window[-1][0]
        means = {name: sum(float(values[name]) for values in fetched) / len(fetched) for name in fetched[0]}
        means["lr"] = float(self._schedule(last - 1))
        means["images_per_second"] = len(window) * self._batch_size / seconds
        if (lap := self._lap()).steps:
            means["input_wait"] = lap.share
            means["step_images_per_second"] = lap.steps * self._batch_size / lap.computing
        self._metrics.write(last, "train", means)
        self._progress.show(last, means)
