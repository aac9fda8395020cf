"""Faults that a run survives, and its exit otherwise. docs/faults.md lists these tests."""

import contextlib
import dataclasses
import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grain
import numpy as np
import psutil
import pytest
from PIL import Image

import train.loop
import train.setup
from tests.runs import RANDOM, TINY, assert_same, records, start, stored
from tests.runs import train as run
from train.cluster import preemption
from train.data import workers as data_workers
from train.errors import Stopped, UserError, one_line
from train.main import main
from train.run import checkpoint, integrity
from train.run.checkpoint import open_checkpoints
from train.run.failures import last_usable_checkpoint
from train.run.inventory import score
from train.run.lock import Lock
from train.run.records import Metrics
from train.run.stored import read_run_file
from train.run.workdir import as_begun

# An evaluation every 4 steps, a checkpoint every 3, and windows of 2 steps that neither divides.
QUICK = (*RANDOM, "--steps=8", "--eval-epochs=0.1", "--save-steps=3", "--keep=3")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("alone")
    assert run(workdir, *QUICK) == 0
    return workdir


@pytest.fixture
def copy(alone, tmp_path):
    """A copy of that workdir, which a test may damage."""
    return shutil.copytree(alone, tmp_path / "run")


def assert_same_run(workdir, alone):
    assert_same(stored(workdir, 8)[0], stored(alone, 8)[0])
    for split in ("train", "eval"):
        assert records(workdir, split) == records(alone, split)


def steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def before_batch(patch, number, action):
    """Call `action` before training batch `number` is put on the devices."""
    seen = []

    def to_devices(batch, mesh, original=train.loop.to_devices):
        seen.append("mask" not in batch)
        if "mask" not in batch and sum(seen) == number:
            action()
        return original(batch, mesh)

    patch.setattr(train.loop, "to_devices", to_devices)


def error(capsys, beginning):
    """The one-line error message of a run, which starts with `beginning`."""
    err = capsys.readouterr().err
    assert err.startswith(beginning), err
    assert err.count("\n") == 1, err
    return err


# SIGTERM, and checkpoints between evaluations


def test_checkpoints_between_evaluations(alone):
    assert steps(alone) == [4, 6, 8] or 3 in steps(alone)
    manager = open_checkpoints(alone)
    assert manager.metrics(6) == {}
    assert manager.best_step() in (4, 8)
    manager.close()
    assert [r["step"] for r in records(alone, "eval")] == [4, 8]
    assert [r["step"] for r in records(alone, "train")] == [2, 4, 6, 8]


def test_what_was_not_evaluated_is_never_the_best():
    assert score({}) < score({"loss": 1e30})
    assert score({"loss": 2.0}) < score({"loss": 1.0}) < score({"loss": 3.0, "accuracy": 0.1})


def test_sigterm_saves_and_exits_with_143(alone, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        before_batch(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        before = signal.getsignal(signal.SIGTERM)
        assert run(tmp_path, *QUICK) == 143
        assert signal.getsignal(signal.SIGTERM) is before
    assert error(capsys, "preempted: ") == "preempted: saved after step 5/8; the same command continues from there\n"
    assert steps(tmp_path)[-1] == 5  # the step was finished, and not another
    assert run(tmp_path, *QUICK) == 0
    assert "continues after step 5" in capsys.readouterr().out
    assert_same_run(tmp_path, alone)


def test_sigterm_during_an_evaluation_puts_it_off(alone, tmp_path, monkeypatch, capsys):
    def to_devices(batch, mesh, original=train.loop.to_devices):
        if "mask" in batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(batch, mesh)

    for said in ("saved after step 4/8", "step 4/8 had been saved"):
        with monkeypatch.context() as patch:
            patch.setattr(train.loop, "to_devices", to_devices)
            assert run(tmp_path, *QUICK) == 143
        assert error(capsys, "preempted: ") == f"preempted: {said}; the same command continues from there\n"
        assert records(tmp_path, "eval") == []
    assert run(tmp_path, *QUICK) == 0
    assert_same_run(tmp_path, alone)


def test_sigterm_before_the_first_step_ends_at_once(tmp_path):
    process = start(tmp_path / "run", *QUICK)
    for line in process.stdout:
        if line.startswith("model"):
            break
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "preempted: " in said


# Ctrl-C


def test_ctrl_c_saves_and_exits_with_130(tmp_path, monkeypatch, capsys):
    before_batch(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    assert run(tmp_path, *QUICK) == 130
    assert signal.getsignal(signal.SIGINT) is before
    said = "interrupted: saved after step 5/8; the same command continues from there\n"
    assert error(capsys, "interrupted: ") == said
    assert steps(tmp_path)[-1] == 5


def test_a_second_ctrl_c_ends_at_once():
    """The previous signal handler acts: in a command it ends the process, in a notebook it raises KeyboardInterrupt."""
    with preemption.listening() as asked:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)  # nothing is there to be saved
        assert not asked.asked()
        asked.saves = True
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_has_no_traceback_in_a_command():
    code = "import os; from train.commandline.startup import set_up_process; set_up_process(); os.kill(os.getpid(), 2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.slow
def test_five_quick_ctrl_c_have_no_traceback(tmp_path):
    process = start(tmp_path / "run", *QUICK, "--steps=100000")
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    for _ in range(5):
        process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said


def test_help_names_the_status(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "143" in capsys.readouterr().out


# Another number of devices, another mesh


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """The workdir of a run on eight devices that stopped after step 5."""
    workdir = tmp_path_factory.mktemp("halfway") / "run"
    with pytest.MonkeyPatch.context() as patch:
        before_batch(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(workdir, *QUICK) == 143
    return workdir


def assert_close_run(workdir, alone):
    state, expected = stored(workdir, 8)[0], stored(alone, 8)[0]
    assert state.keys() == expected.keys()
    for path in state:
        # Sums are in another order. Adam's first steps are of full length even if a gradient is only rounding.
        np.testing.assert_allclose(state[path], expected[path], rtol=1e-3, atol=1e-4, err_msg=path)
    for split in ("train", "eval"):
        loss, other = ([r["loss"] for r in records(w, split)] for w in (workdir, alone))
        np.testing.assert_allclose(loss, other, rtol=1e-4)


def test_another_mesh_continues(alone, halfway, tmp_path, capsys):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    assert run(workdir, *QUICK, "--mesh=tensor=2") == 0
    out = capsys.readouterr().out
    assert "mesh data=4,tensor=2" in out
    assert "continues after step 5" in out
    assert_close_run(workdir, alone)


@pytest.mark.slow
def test_one_device_continues_what_eight_began(alone, halfway, tmp_path):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    said, _ = start(workdir, *QUICK, devices=1).communicate(timeout=300)
    assert "1 x cpu" in said
    assert "continues after step 5" in said
    assert_close_run(workdir, alone)


# Damaged checkpoints


@pytest.mark.parametrize("fault", ["flipped", "missing", "short"])
def test_damage_in_any_file_of_a_checkpoint_is_noticed(fault, alone, tmp_path):
    folder = shutil.copytree(alone / "checkpoints" / "8", tmp_path / "8")
    assert integrity.damage(folder) is None
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in integrity.LATE]
    assert len(files) > 6
    for path in files:
        content = bytearray(path.read_bytes())
        if fault == "missing":
            path.unlink()
        elif fault == "short":
            path.write_bytes(content[:-1])
        else:
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        trouble = integrity.damage(folder)
        assert trouble
        assert path.name in trouble
        path.write_bytes(content)
    assert integrity.damage(folder) is None


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_damaged_checkpoint_is_set_aside_and_the_one_before_used(alone, copy, capsys):
    path = largest(copy / "checkpoints/8")
    flip(path)
    damaged = path.read_bytes()
    # A kill during a write leaves a folder of another name; a kill while Orbax deletes an old one leaves some files.
    shutil.copytree(copy / "checkpoints/6", copy / "checkpoints/7.orbax-checkpoint-tmp")
    shutil.rmtree(copy / "checkpoints/4/metrics")
    assert run(copy, *QUICK) == 0
    out, err = capsys.readouterr()
    assert "continues after step 6" in out
    assert err.startswith(f"warning: the checkpoint {copy}/checkpoints/8 is damaged (state/")
    assert err.endswith(f"moved to {copy}/damaged/8\n")
    assert err.count("\n") == 1
    assert (copy / "damaged" / path.relative_to(copy / "checkpoints")).read_bytes() == damaged
    assert not list((copy / "checkpoints").glob("*tmp*"))
    assert_same_run(copy, alone)

    flip(largest(copy / "checkpoints/8"))  # again: the first keeps its name
    assert run(copy, *QUICK) == 0
    assert sorted(p.name for p in (copy / "damaged").iterdir()) == ["8", "8-2"]


def test_no_good_checkpoint_left(copy, capsys):
    numbers = steps(copy)
    for number in numbers:
        (copy / f"checkpoints/{number}/checksums.json").unlink()
    assert run(copy, *QUICK) == 2
    *warnings, last = capsys.readouterr().err.splitlines()
    assert len(warnings) == len(numbers)
    assert last.startswith(f"error: no checkpoint of {copy} can be read; they are in {copy}/damaged. ")
    assert sorted(int(p.name) for p in (copy / "damaged").iterdir()) == numbers


def test_prediction_refuses_a_damaged_checkpoint(copy):
    from train.run.stored import load_run

    for number in steps(copy):
        flip(largest(copy / f"checkpoints/{number}"))
    with pytest.raises(UserError, match=r"the checkpoint .* is damaged: state/"):
        load_run(copy)


# Values that are not finite


def test_parameters_that_are_no_numbers_are_not_saved(tmp_path, monkeypatch, capsys):
    """The loss depends on the parameters before the step, so it can be finite when those after the step are not."""
    monkeypatch.setattr(train.loop, "all_finite", lambda params: False)
    assert run(tmp_path, *QUICK) == 1
    message = error(capsys, "stopped: a parameter is not finite after step 3. ")
    assert f"In {tmp_path} there is no checkpoint yet. Try a smaller --optim.lr" in message
    assert steps(tmp_path) == []


# Full disks


def test_full_disk_ends_in_one_line(alone, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    for place, name, said in (
        (checkpoint, "seal", r"stopped: a checkpoint cannot be written: No space left on device\. "),
        (Metrics, "write", r"stopped: No space left on device \(somewhere\)\. "),
    ):
        with monkeypatch.context() as patch:
            before_batch(patch, 5, lambda place=place, name=name: patch.setattr(place, name, full))
            assert run(tmp_path / name, *QUICK) == 1
        message = error(capsys, "stopped: ")
        assert re.match(said, message)
        last = max(int(p.name) for p in (tmp_path / name / "checkpoints").iterdir() if p.name.isdigit())
        assert f"In {tmp_path / name} the last good checkpoint is step {last}\n" in message
        assert run(tmp_path / name, *QUICK) == 0
        capsys.readouterr()
        assert_same_run(tmp_path / name, alone)


def test_the_reason_is_never_cut_off():
    text = (
        "Error writing " + "a/very/long/path/" * 40 + ": [OS error 28: No space left on device]\n[source locations=...]"
    )
    assert one_line(ValueError(text)).startswith("No space left on device: Error writing a/very/long")
    assert len(one_line(ValueError(text))) < 250
    assert one_line(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == "No space left on device"
    assert one_line(ValueError("a\nb")) == "a b"


@pytest.mark.slow
def test_a_limit_of_the_system_stops_a_run_as_a_full_disk_does(alone, tmp_path):
    """Files cannot grow beyond 40 kB: small files are written, the parameters are not."""
    code = (
        "import resource, runpy, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); runpy.run_module('train.main', None, '__main__')"
    )
    command = [sys.executable, "-c", code, *TINY, "mlp_dim=2048", *QUICK[1:], f"--workdir={tmp_path / 'run'}"]
    # No cache of compiled programs, which could not grow either and would print warnings.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("stopped: a checkpoint cannot be written: ")
    assert f"In {tmp_path / 'run'} there is no checkpoint yet" in done.stderr
    assert not [p for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()]
    assert last_usable_checkpoint(tmp_path / "run").endswith("there is no checkpoint yet")


# Two runs in one workdir


def test_second_run_in_a_workdir_is_refused(copy, capsys, monkeypatch):
    """This happens before the step is compiled, which may take minutes."""
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "lock"}
    with contextlib.closing(Lock(copy)), monkeypatch.context() as patch:
        patch.setattr(train.setup, "compile_step", lambda *_: pytest.fail("a step was compiled"))
        assert run(copy, *QUICK) == 2
        message = error(capsys, f"error: --workdir {copy} is in use by process {os.getpid()} on ")
        assert message.endswith("pass another, or wait\n")
        assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "lock"} == before
    assert run(copy, *QUICK) == 0


def test_a_killed_run_leaves_no_lock(copy, capsys):
    code = f"import time; from train.run.lock import Lock; Lock('{copy}'); print('locked', flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match=f"in use by process {process.pid} on "):
        Lock(copy)
    process.kill()
    process.communicate()
    Lock(copy).close()


def test_a_deleted_lock_does_not_let_two_runs_in(tmp_path):
    first = Lock(tmp_path)
    (tmp_path / "lock").unlink()
    second = Lock(tmp_path)
    with pytest.raises(Stopped, match=rf"was taken over by process {os.getpid()} on "):
        first.check()
    second.check()
    first.close()
    second.check()

    (tmp_path / "lock").unlink()
    second.check()  # no other run has taken it: the lock file is created again
    with pytest.raises(UserError, match="in use by process"):
        Lock(tmp_path)
    second.close()
    Lock(tmp_path).close()


def test_where_nothing_can_be_locked_the_last_to_come_has_the_workdir(alone, tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("train.run.lock.fcntl.flock", unsupported)
    before_batch(monkeypatch, 4, lambda: Lock(tmp_path).close())
    assert run(tmp_path, *QUICK) == 1
    assert f"stopped: {tmp_path} was taken over by process " in error(capsys, "stopped: ")
    assert steps(tmp_path) == [3]


# Data: images that cannot be read, and workers that die


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
    options = ("patch_size=4", f"--data=folder:{root}", "--data.image-size", "8", "8", "--data.min-crop=0.5")
    return broken, (*options, *QUICK[1:], "--eval-epochs=2")


def test_broken_image_is_told_and_the_run_continues_bit_for_bit(pictures, tmp_path, monkeypatch, capsys):
    broken, options = pictures
    assert run(tmp_path / "alone", *options) == 0
    said = capsys.readouterr().out
    assert f"warning: 1 of 64 training images cannot be read; the latest is {broken}\n" in said
    assert re.search(r"done: loss .* on 15 evaluation images after", said)
    with monkeypatch.context() as patch:
        before_batch(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(tmp_path / "stopped", *options) == 143
    assert run(tmp_path / "stopped", *options) == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")


def test_images_that_break_later_do_not_keep_a_run_from_going_on(copy):
    config, info = read_run_file(copy)
    config = dataclasses.replace(config, workdir=str(copy))
    assert as_begun(config, info._replace(mean=(info.mean[0] + 0.005,))) == info
    other = info._replace(mean=(info.mean[0] + 0.02,))
    assert as_begun(config, other) == other
    assert as_begun(dataclasses.replace(config, workdir=str(copy / "new")), other) == other


def workers(process):
    return [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]


# Evaluations would have workers of their own.
ENDLESS = ("--data.workers=2", "--steps=100000", "--eval-epochs=10000")


@pytest.mark.slow
def test_dead_data_worker_ends_the_run(pictures, tmp_path):
    process = start(tmp_path / "run", *pictures[1], *ENDLESS)
    for line in process.stdout:
        if line.startswith("step 10/"):
            break
    workers(process)[0].kill()
    since = time.monotonic()
    said, _ = process.communicate(timeout=120)
    assert time.monotonic() - since < 60
    assert process.returncode == 1
    lines = [line for line in said.splitlines() if line.startswith("stopped: ")]
    assert len(lines) == 1
    assert lines[0].startswith("stopped: a data worker died; ")
    assert "Traceback" not in said  # Python itself tells of the shared memory that it frees


@pytest.mark.slow
def test_workers_outlive_a_ctrl_c_until_the_run_has_saved(pictures, tmp_path):
    """A terminal sends it to them too."""
    process = start(tmp_path / "run", *pictures[1], *ENDLESS)
    for line in process.stdout:
        if line.startswith("step 10/"):
            break
    for worker in workers(process):
        worker.send_signal(signal.SIGINT)
    time.sleep(1)  # long enough for the run to notice, if they died
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted: saved after step " in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_workers_of_a_killed_run_end_too(pictures, tmp_path):
    process = start(tmp_path / "run", *pictures[1], *ENDLESS)
    for line in process.stdout:
        if line.startswith("step 10/"):
            break
    found = workers(process)
    assert len(found) >= 2
    process.kill()
    process.communicate()
    assert psutil.wait_procs(found, timeout=30)[1] == []


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


# The table


def test_the_table_names_tests_that_exist():
    table = (Path(__file__).parents[1] / "docs/faults.md").read_text()
    table = table.partition("\n## Faults\n")[2]
    rows = [row for row in table.splitlines() if row.startswith("| ") and not row.startswith("| fault |")]
    rows = [row.split("|")[1:-1] for row in rows]
    assert len(rows) > 15
    names = [re.findall(r"`([\w/]+)\.py::(test_\w+)`", row[-1]) for row in rows]
    for row, found in zip(rows, names, strict=True):
        assert found, row
        for file, test in found:
            assert f"\ndef {test}(" in (Path(__file__).parent / f"{file}.py").read_text(), test
    listed = {test for found in names for _, test in found}
    for path in (Path(__file__), Path(__file__).with_name("test_processes.py")):
        for test in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE):
            assert test in listed | {"test_the_table_names_tests_that_exist"}, test
