"""The clock of the devices: when they compute, when they wait for images, and what limits a run."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.runs import train
from train.run import clock as module
from train.run.clock import DeviceClock, Lap, bottleneck
from train.run.records import read_records


class Ends:
    """A result that is ready at a time."""

    def __init__(self, now, at):
        self._now, self._at = now, at

    def block_until_ready(self):
        self._now.value = self._at


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(0, 5, 9)], Lap()),  # nothing is before the first step
        ([(0, 5, 9), (6, 7, 13)], Lap(1, 4.0, 0.0)),  # the batch was there before the step before had ended
        ([(0, 5, 9), (6, 11, 13)], Lap(1, 2.0, 2.0)),  # it came two seconds later
        ([(0, 5, 9), (19, 22, 24)], Lap(1, 2.0, 3.0)),  # an evaluation from 9 to 19 does not count
        ([(0, 5, 9), (6, 7, 13), (8, 15, 16)], Lap(2, 5.0, 2.0)),
    ],
)
def test_computing_and_waiting(steps, expected, monkeypatch):
    now = SimpleNamespace(value=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now.value))
    clock = DeviceClock()
    for asked, given, ended in steps:
        clock.add(float(asked), float(given), {"loss": Ends(now, float(ended))})
    clock.close()
    assert clock.total == expected
    assert (clock.lap(), clock.lap()) == (expected, Lap())


def test_a_step_that_fails_does_not_block():
    def fail():
        raise RuntimeError("out of memory")

    clock = DeviceClock()
    clock.add(0.0, 1.0, SimpleNamespace(block_until_ready=fail))
    clock.close()
    assert clock.total == Lap()


def test_what_limits_a_run():
    fast = "1,000 images/s, limited by the training step: the devices waited 5% of the time for images"
    assert bottleneck(Lap(10, 0.95, 0.05), 100) == fast
    slow = "500 images/s, limited by the input: the devices waited 50% of the time for images; the step alone does"
    found = bottleneck(Lap(10, 1.0, 1.0), 100)
    assert found == f"{slow} 1,000. Smaller image files or more processors help"


def test_a_run_says_what_limits_it(tmp_path, capsys, monkeypatch):
    """Batches that take a tenth of a second each are slower than any step of the test."""

    def slow(batch, logits):
        module.time.sleep(0.1)
        return batch

    monkeypatch.setattr("train.loop.with_teacher", slow)
    assert train(tmp_path, "--steps=6") == 0
    assert "limited by the input: the devices waited " in capsys.readouterr().out
    recorded = [record for record in read_records(tmp_path) if "input_wait" in record]
    assert len(recorded) > 1  # of the first two steps, none may be measured
    assert np.mean([record["input_wait"] for record in recorded]) > 0.5
    assert recorded[1]["step_images_per_second"] > 2 * recorded[1]["images_per_second"]
