"""Several processes on one machine: they train, lose one, stop, resume, and reach the same result."""

import contextlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import train.loop
from tests.runs import assert_same, records, start, stored
from tests.runs import train as run
from train.cluster.processes import HEARTBEAT
from train.run.lock import Lock

STEPS = 20
OPTIONS = ("dropout=0.1", f"--steps={STEPS}", "--eval-epochs=0.2", "--save-steps=3", "--keep=2")


def together(count):
    """The options of each of several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [(f"--coordinator={address}", f"--processes={count}", f"--process={i}") for i in range(count)]


def start_together(workdir, count, *more):
    return [start(workdir, *OPTIONS, *more, *options) for options in together(count)]


def finish(processes, seconds=HEARTBEAT + 60):
    """The output and the exit status of each process."""
    try:
        return [(process.communicate(timeout=seconds)[0], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_for_checkpoint(process):
    """Two windows of two steps each, between which a third step saves."""
    lines = (line for line in process.stdout if line.startswith("step ") and "evaluation" not in line)
    for _ in range(2):
        assert next(lines, None), "the run ended"


def run_alone(workdir, count):
    """An uninterrupted run of one process, with as many devices, which get the images of as many processes."""

    def to_devices(batch, mesh, original=train.loop.to_devices):
        rows = lambda array: np.concatenate([array[first::count] for first in range(count)])
        return original(jax.tree.map(rows, batch), mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.loop, "to_devices", to_devices)
        assert run(workdir, *OPTIONS, devices=count) == 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Workdirs of uninterrupted runs, by number of processes."""
    done = {}

    def of(count):
        if count not in done:
            done[count] = tmp_path_factory.mktemp("together") / str(count)
            if count == 2:
                run_alone(done[count], count)
            else:  # one process adds more than two gradients in another order
                for said, status in finish(start_together(done[count], count), 300):
                    assert status == 0, said
        return done[count]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "losses"),
    [
        (2, [(1, signal.SIGKILL), (1, signal.SIGINT)]),
        pytest.param(2, [(0, signal.SIGKILL)], marks=pytest.mark.exhaustive),
        pytest.param(4, [(2, signal.SIGKILL), (3, signal.SIGTERM)], marks=pytest.mark.exhaustive),
    ],
)
def test_processes_lose_one_and_end_as_if_left_alone(count, losses, alone, tmp_path):
    """One after the other: every start continues what the loss before it has left."""
    workdir = tmp_path / "run"
    for victim, how in losses:
        processes = start_together(workdir, count)
        wait_for_checkpoint(processes[0])
        processes[victim].send_signal(how)
        for index, (said, status) in enumerate(finish(processes)):
            if how == signal.SIGINT and index == victim:
                assert status == 130
                assert "interrupted: saved after step " in said
            elif how in (signal.SIGTERM, signal.SIGINT):  # all save at one step, and leave
                assert status == 143, said
                assert "preempted: saved after step " in said
            elif index == victim:
                assert status == -how
            else:  # where the first has died, JAX itself may be quicker than we are
                assert status in (1, -signal.SIGABRT), said
                assert f"stopped: process {index} lost the others (" in said or "another task died" in said
    for said, status in finish(start_together(workdir, count, "--data.placement=devices"), 300):
        assert status == 0, said

    assert_same(stored(workdir, STEPS)[0], stored(alone(count), STEPS)[0])
    for split in ("train", "eval"):
        assert records(workdir, split) == records(alone(count), split)


CHECK = """
import sys
from train.cluster.processes import join, together
from train.main import parse
from train.run.workdir import check_continues

config = parse(sys.argv[1:])
join(config)
with together():
    check_continues(config, None, {})  # a run does this before it compiles
"""


@pytest.mark.slow
def test_all_processes_hear_that_a_workdir_is_taken(tmp_path):
    command = [sys.executable, "-c", CHECK, f"--workdir={tmp_path}"]
    with contextlib.closing(Lock(tmp_path)):
        output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for said, status in finish([subprocess.Popen([*command, *options], **output) for options in together(2)]):
            assert status == 2
            assert f"error: --workdir {tmp_path} is in use by process " in said
