"""Two runs in one workdir: the lock of the first keeps the second out."""

import contextlib
import errno
import os
import subprocess
import sys

import pytest

import train.setup
from tests.faults.stopping import QUICK, before_batch, error, steps
from tests.runs import train as run
from train.errors import Stopped, UserError
from train.run.lock import Lock


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
    before_batch(monkeypatch, 8, lambda: Lock(tmp_path).close())
    assert run(tmp_path, *QUICK) == 1
    assert f"stopped: {tmp_path} was taken over by process " in error(capsys, "stopped: ")
    assert steps(tmp_path) == [7]
