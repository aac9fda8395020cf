"""Runs on a folder of images in processes of their own: the run is killed, or its data workers are."""

import contextlib
import dataclasses
import io
import multiprocessing
import random
import re
import shutil
import signal
import threading
import time

import grain
import psutil
import pytest
from PIL import Image

from tests.faults.stopping import LAST, QUICK, assert_close_run, assert_same_run, error, stopped
from tests.runs import start, stored
from tests.runs import train as run
from train.data import workers as data_workers
from train.run.stored import read_run_file
from train.run.workdir import as_begun


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 64 and 16 images of different sizes, one of each broken, and the options that train on it."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 64), ("val", 16)):
        for i in range(count):
            path = root / split / "ab"[i % 2] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((20 + i % 3, 24), 64).save(path)
    for broken in (root / "val/a/02.png", root / "train/b/33.png"):
        broken.write_bytes(broken.read_bytes()[:60])
    size = ("--data.image-size", "8", "8", "--data.min-crop=0.5", "--model-args", "patch_size=4")
    return broken, (f"--data=folder:{root}", *size)


@pytest.fixture(scope="module")
def options(pictures):
    """Those of a run to be stopped and continued."""
    return (*QUICK, "--eval-epochs=4.5", *pictures[1])


@pytest.fixture(scope="module")
def halfway(options, tmp_path_factory):
    """The workdir of a run on two devices that stopped after step 5."""
    return stopped(tmp_path_factory.mktemp("halfway") / "run", *options)


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """The workdir of an uninterrupted run on two devices, and its output."""
    workdir = tmp_path_factory.mktemp("whole")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run(workdir, *options) == 0
    return workdir, said.getvalue()


def test_broken_image_is_told_and_the_run_continues_bit_for_bit(pictures, options, whole, halfway, tmp_path):
    workdir, said = whole
    assert f"warning: 1 of 64 training images cannot be read; the latest is {pictures[0]}\n" in said
    assert re.search(r"done: loss .* on 15 evaluation images after", said)
    continued = shutil.copytree(halfway, tmp_path / "run")
    assert run(continued, *options) == 0
    assert_same_run(continued, workdir)


def test_images_that_break_later_do_not_keep_a_run_from_going_on(halfway, tmp_path):
    config, info = read_run_file(halfway)
    config = dataclasses.replace(config, workdir=str(halfway))
    assert as_begun(config, info._replace(mean=(info.mean[0] + 0.005,))) == info
    other = info._replace(mean=(info.mean[0] + 0.02,))
    assert as_begun(config, other) == other
    assert as_begun(dataclasses.replace(config, workdir=str(tmp_path)), other) == other


def read_until(process, beginning):
    """Read the output of a process up to a line, which is returned with those before it."""
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(beginning):
            return said
    pytest.fail(said)


def workers(process):
    return [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]


HELD = """
import sys, threading
from train.commandline.terminal import run_command
from train.main import main
from train.run import checkpoint

def seal(*arguments, original=checkpoint.seal, complete=iter(range({complete}))):
    if next(complete, None) is None:
        print("held", flush=True)
        threading.Event().wait()
    original(*arguments)

checkpoint.seal = seal
sys.exit(run_command(main))
"""


@contextlib.contextmanager
def held(workdir, *options, complete):
    """A run that saves this number of checkpoints, then waits while it writes the next.

    On a busy machine, a small run could otherwise end before the signal arrives.
    """
    with start(workdir, *options, program=("-c", HELD.format(complete=complete))) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_killed_run_ends_as_if_left_alone(options, halfway, whole, tmp_path, capsys):
    """One device continues what two began. It is killed shortly after a step, interrupted again and again, then killed
    while it writes a checkpoint, and each time started again.
    """
    expected = shutil.copytree(halfway, tmp_path / "expected")
    assert run(expected, *options, devices=1) == 0
    assert_close_run(expected, whole[0])

    workdir = shutil.copytree(halfway, tmp_path / "run")
    options = (*options, "--save-steps=1")
    with held(workdir, *options, "--data.workers=1", complete=4) as process:
        said = read_until(process, "step ")
        assert "1 x cpu" in said
        assert "continues after step 5" in said
        found = workers(process)
        time.sleep(random.Random(0).uniform(0, 0.1))
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert psutil.wait_procs(found, timeout=30) == (found, [])
    assert found

    with held(workdir, *options, complete=3) as process:
        read_until(process, "step ")
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        said, _ = process.communicate(timeout=1)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said

    with held(workdir, *options, complete=1) as process:
        read_until(process, "held")
        assert any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())
    assert process.returncode == -signal.SIGKILL

    capsys.readouterr()
    assert run(workdir, *options, devices=1) == 0
    assert "continues after step" in capsys.readouterr().out
    assert_same_run(workdir, expected)
    assert stored(workdir, LAST)[1] == stored(expected, LAST)[1]


@pytest.mark.slow
def test_workers_outlive_a_ctrl_c_and_a_dead_one_ends_the_run(pictures, tmp_path):
    """A terminal sends Ctrl-C to workers too, but the run may need their batches until it has saved."""
    # Evaluations would have workers of their own.
    endless = ("--data.workers=2", "--steps=100000", "--eval-epochs=10000")
    process = start(tmp_path / "run", *pictures[1], *endless)
    read_until(process, "step 10/")
    first, second = workers(process)
    for worker in (first, second):
        worker.send_signal(signal.SIGINT)
    assert psutil.wait_procs([process, first, second], timeout=1)[0] == []  # the run would notice, if they died
    first.kill()
    since = time.monotonic()
    said, _ = process.communicate(timeout=120)
    assert time.monotonic() - since < 60
    assert process.returncode == 1
    lines = [line for line in said.splitlines() if line.startswith("stopped: ")]
    assert len(lines) == 1
    assert lines[0].startswith("stopped: a data worker died; ")
    assert "Traceback" not in said  # Python itself tells of the shared memory that it frees


def test_a_worker_that_dies_unnoticed_ends_the_run_after_a_while(monkeypatch, capsys):
    """A worker can die in the middle of a message, whose reader then waits forever."""
    monkeypatch.setattr(data_workers, "GRACE", 0.1)
    ended = threading.Event()
    status = []
    batches = iter(grain.MapDataset.range(3).to_iter_dataset())
    watched = data_workers.Watched(batches, end=lambda code: (status.append(code), ended.set()))
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), name=f"{data_workers.NAME}-1")
    worker.start()
    assert not ended.wait(2)  # it lives
    worker.kill()
    assert ended.wait(20)
    assert status == [1]
    assert error(capsys, "stopped: a data worker died; ")
    watched.close()
