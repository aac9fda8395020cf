"""Workdirs in a simulated object store: a folder on disk with gs:// paths, and a run that treats its workdir as remote.

Orbax's and tensorstore's own access to gs:// is not tested.
"""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from etils.epath import backend as backends

from tests.runs import RANDOM, assert_same, records, stored
from tests.runs import train as run
from train.build import DataInfo
from train.config import Config
from train.distill import cached_logits as teacher_cache
from train.errors import Stopped
from train.run import checkpoint, files, integrity, inventory, lock
from train.run.curves import draw_curves
from train.run.failures import last_usable_checkpoint
from train.run.files import StagedDirectory, write_atomically
from train.run.inventory import set_damaged_aside
from train.run.records import Metrics, read_records
from train.run.stored import read_run_file
from train.run.workdir import claim

INFO = DataInfo(("a", "b"), (8, 8, 1), (0.5,), (0.5,))


class Store(backends._OsPathBackend):
    """A backend where gs://NAME is a folder in `root`. As in an object store, files cannot be appended to."""

    def __init__(self, root):
        self.root = root

    def place(self, path):
        return str(path).replace("gs://", f"{self.root}/")

    def open(self, path, mode):
        assert "a" not in mode
        os.makedirs(os.path.dirname(self.place(path)), exist_ok=True)
        return super().open(self.place(path), mode)


def one_path(name):
    return lambda self, path, *args, **kw: getattr(backends._OsPathBackend, name)(self, self.place(path), *args, **kw)


def two_paths(name):
    def call(self, path, target, *args, **kw):
        os.makedirs(os.path.dirname(self.place(target)), exist_ok=True)
        return getattr(backends._OsPathBackend, name)(self, self.place(path), self.place(target), *args, **kw)

    return call


for name in ("exists", "isdir", "listdir", "makedirs", "mkdir", "rmtree", "remove", "stat"):
    setattr(Store, name, one_path(name))
for name in ("rename", "replace", "copy"):
    setattr(Store, name, two_paths(name))


@pytest.fixture
def store(tmp_path, monkeypatch):
    backend = Store(tmp_path)
    monkeypatch.setattr("etils.epath.gpath._PREFIX_TO_BACKEND", {"gs": backend, None: backends.os_backend})
    monkeypatch.setattr("etils.epath.gpath._GCS_BACKENDS", frozenset({backend}))
    return tmp_path


def test_files_are_whole_or_absent(store):
    path = epath.Path("gs://bucket/run/file")
    write_atomically(path, "text")
    assert (store / "bucket/run/file").read_text() == "text"
    assert [p.name for p in (store / "bucket/run").iterdir()] == ["file"]
    assert files.is_remote(path)
    assert not files.is_remote(store)


def test_files_that_grow_are_published(store):
    with contextlib.closing(StagedDirectory("gs://bucket/run")) as staged:
        (staged.path / "log").write_text("1")
        staged.publish()
        assert (store / "bucket/run/log").read_text() == "1"
        (staged.path / "log").write_text("12")
    assert (store / "bucket/run/log").read_text() == "12"
    assert not staged.path.exists()


def test_metrics_are_there_before_a_checkpoint_is(store):
    for start, step in ((0, 1), (1, 2)):
        metrics = Metrics("gs://bucket/run", start)
        metrics.write(step, "train", {"loss": 1.0})
        metrics.publish()
        assert [r["step"] for r in read_records("gs://bucket/run")] == list(range(1, step + 1))
        metrics.write(step + 1, "train", {"loss": 1.0})
        metrics.close()
    assert str(draw_curves("gs://bucket/run")) == "gs://bucket/run/curves.png"
    assert (store / "bucket/run/curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((store / "bucket/run").glob("events.out.tfevents.*"))


def test_the_last_to_come_has_a_remote_workdir(store):
    config = Config(workdir="gs://bucket/run")
    first = claim(config, INFO)
    assert (str(first.workdir), first.start) == ("gs://bucket/run", 0)
    assert read_run_file("gs://bucket/run") == (config, INFO)
    first.check()
    (store / "bucket/run/lock").write_text("process 7 on elsewhere")
    with pytest.raises(Stopped, match="gs://bucket/run was taken over by process 7 on elsewhere"):
        first.check()


def test_damage_in_a_store_is_told_by_sizes(store):
    for step in (2, 4):
        folder = epath.Path(f"gs://bucket/run/checkpoints/{step}")
        for name, content in (("state/d/one", "content"), ("metrics/metrics", "{}")):
            (store / f"bucket/run/checkpoints/{step}" / name).parent.mkdir(parents=True)
            (folder / name).write_text(content)
        integrity.seal(folder, step)
        assert integrity.damage(folder) is None
    (folder / "state/d/one").write_text("conten")
    said = []
    assert set_damaged_aside("gs://bucket/run", said.append) == 2
    assert said == [
        "warning: the checkpoint gs://bucket/run/checkpoints/4 is damaged (state/d/one is not as it was written): "
        "moved to gs://bucket/run/damaged/4"
    ]
    assert (store / "bucket/run/damaged/4/state/d/one").exists()
    assert last_usable_checkpoint("gs://bucket/run") == "In gs://bucket/run the last good checkpoint is step 2"


def test_a_run_with_nothing_but_whole_files_is_the_same(tmp_path, monkeypatch):
    options = (*RANDOM, "--steps=5", "--eval-epochs=0.1", "--save-steps=2")
    assert run(tmp_path / "local", *options, curves=True) == 0
    for module in (files, checkpoint, integrity, inventory, lock, teacher_cache):
        monkeypatch.setattr(module, "is_remote", lambda path: str(tmp_path / "remote") in os.fspath(path))
    assert run(tmp_path / "remote", *options, curves=True) == 0
    assert_same(stored(tmp_path / "remote", 5)[0], stored(tmp_path / "local", 5)[0])
    for split in ("train", "eval"):
        assert records(tmp_path / "remote", split) == records(tmp_path / "local", split)
    names = [sorted(p.name.partition(".out")[0] for p in (tmp_path / w).iterdir()) for w in ("local", "remote")]
    assert names[0] == names[1]
    sums = next(Path(tmp_path / "remote/checkpoints").glob("*/checksums.json")).read_text()
    assert " bytes" in sums
    assert np.all([run(tmp_path / "remote", *options) == 0])
