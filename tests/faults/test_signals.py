"""SIGTERM and Ctrl-C: a run saves and exits with their status, and the same command continues it."""

import os
import signal
import subprocess
import sys

import pytest

import train.loop
import train.setup
from tests.faults.stopping import QUICK, assert_same_run, before_batch, error, steps
from tests.runs import records
from tests.runs import train as run
from train.cluster import preemption
from train.main import main


def test_sigterm_saves_and_exits_with_143(alone, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        before_batch(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        before = signal.getsignal(signal.SIGTERM)
        assert run(tmp_path, *QUICK) == 143
        assert signal.getsignal(signal.SIGTERM) is before
    assert error(capsys, "preempted: ") == "preempted: saved after step 5/16; the same command continues from there\n"
    assert steps(tmp_path)[-1] == 5  # the step was finished, and not another
    # Ctrl-C during the report: all is saved, and nothing waits for its end.
    monkeypatch.setattr(train.loop, "write_ending", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    assert run(tmp_path, *QUICK) == 130
    out, err = capsys.readouterr()
    assert "continues after step 5" in out
    assert err == "interrupted: the same command continues from the last checkpoint\n"
    assert_same_run(tmp_path, alone)


def test_sigterm_during_an_evaluation_puts_it_off(alone, tmp_path, monkeypatch, capsys):
    def to_devices(batch, mesh, original=train.loop.to_devices):
        if "mask" in batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(batch, mesh)

    for said in ("saved after step 9/16", "step 9/16 had been saved"):
        with monkeypatch.context() as patch:
            patch.setattr(train.loop, "to_devices", to_devices)
            assert run(tmp_path, *QUICK) == 143
        assert error(capsys, "preempted: ") == f"preempted: {said}; the same command continues from there\n"
        assert records(tmp_path, "eval") == []
    assert run(tmp_path, *QUICK) == 0
    assert_same_run(tmp_path, alone)


def test_sigterm_before_the_first_step_ends_at_once(tmp_path, monkeypatch, capfd):
    class Ended(BaseException):
        """Instead of the end of this process."""

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(train.setup, "compile_step", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Ended, match=r"^143$"):
        run(tmp_path / "run", *QUICK)
    assert capfd.readouterr().err == "preempted: there is nothing to save\n"
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_exits_with_130(tmp_path, monkeypatch, capsys):
    before_batch(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    assert run(tmp_path, *QUICK) == 130
    assert signal.getsignal(signal.SIGINT) is before
    said = "interrupted: saved after step 5/16; the same command continues from there\n"
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


def test_help_names_the_status(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "143" in capsys.readouterr().out
