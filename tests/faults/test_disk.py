"""Full disks: a run ends in one line, and no incomplete file has a final name."""

import errno
import gc
import logging
import os
import re
import resource

from tests.faults.stopping import QUICK, assert_same_run, before_batch, error
from tests.runs import train as run
from train.errors import one_line
from train.run import checkpoint
from train.run.failures import last_usable_checkpoint
from train.run.records import Metrics


def test_full_disk_ends_in_one_line(alone, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    for place, name, said in (
        (checkpoint, "seal", r"stopped: a checkpoint cannot be written: No space left on device\. "),
        (Metrics, "write", r"stopped: No space left on device \(somewhere\)\. "),
    ):
        with monkeypatch.context() as patch:
            before_batch(patch, 8, lambda place=place, name=name: patch.setattr(place, name, full))
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


def test_a_limit_of_the_system_stops_a_run_as_a_full_disk_does(alone, tmp_path, capsys, caplog):
    """Files cannot grow beyond 20 kB: small files are written, a checkpoint is not. `alone` has compiled before."""
    caplog.set_level(logging.CRITICAL, "absl")  # as in a command; messages could not be written either
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
    try:
        assert run(tmp_path, *QUICK) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    # Orbax's failed tasks log when they are collected. During an `ast.parse` of a later test, that is an error of
    # CPython 3.11 (gh-106905).
    gc.collect()
    message = error(capsys, "stopped: a checkpoint cannot be written: ")
    assert f"In {tmp_path} there is no checkpoint yet" in message
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert last_usable_checkpoint(tmp_path).endswith("there is no checkpoint yet")
