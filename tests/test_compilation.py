"""The folder of compiled programs: the default, what JAX is told, what is refused, how it stays small, exact runs."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests import runs
from tests.faults.stopping import QUICK, assert_same_run, stopped
from train import compilation
from train.compilation import keep_programs, remove_oldest
from train.main import parse


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The default folder of a user without settings. Nothing is compiled with it."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "vit-jax" / "programs"
    jax.config.update("jax_compilation_cache_dir", before)


def kept() -> str | None:
    return jax.config.jax_compilation_cache_dir


def test_programs_are_kept_by_default(folder, monkeypatch):
    keep_programs()
    assert kept() == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(compilation.default_folder()) == "/home/someone/.cache/vit-jax/programs"


def test_options_and_the_environment_decide(folder, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "/of/the/environment")
    keep_programs()
    assert kept() == "/of/the/environment"
    keep_programs(str(tmp_path / "mine"))
    assert kept() == str(tmp_path / "mine")
    keep_programs("gs://bucket/programs")
    assert kept() == "gs://bucket/programs"
    keep_programs(parse(["--compilation-cache=none"]).compilation_cache)
    assert kept() is None
    assert not folder.exists()


def test_a_folder_that_cannot_be_used_is_a_warning(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    keep_programs(str(tmp_path / "file" / "programs"))
    assert kept() is None
    name = tmp_path / "file" / "programs"
    expected = f"warning: compiled programs are not kept in {name}: Not a directory (--compilation-cache)\n"
    assert capsys.readouterr().err == expected

    folder.mkdir(parents=True)
    folder.chmod(0o777)
    keep_programs()
    assert kept() is None
    assert capsys.readouterr().err.endswith(f"{folder}: other users can write there (--compilation-cache)\n")
    keep_programs(str(folder))  # a folder that the user names may be shared
    assert kept() == str(folder)


def test_the_oldest_programs_are_removed(tmp_path):
    for age, name in enumerate("badc"):
        path = tmp_path / name
        path.write_bytes(bytes(10))
        os.utime(path, (1_000_000 - age, 1_000_000 + age))  # last read, written
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")  # as if another process had just removed it
    remove_oldest(tmp_path, most=25)
    (tmp_path / "gone").unlink()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.fixture
def events():
    """Names of the events that JAX records from now on."""
    recorded = []
    listener = lambda event, **_: recorded.append(event)
    jax.monitoring.register_event_listener(listener)
    yield recorded
    jax.monitoring.unregister_event_listener(listener)


@pytest.fixture
def all_kept(tmp_path, monkeypatch):
    """A folder for the programs of runs in this process, even of those that are compiled quickly."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setattr(runs, "PROGRAMS", {})
    jax.clear_caches()
    compilation_cache.reset_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield tmp_path / "programs"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_run_continues_exactly_with_programs_of_the_folder(all_kept, events, tmp_path):
    options = (*QUICK, f"--compilation-cache={all_kept}")
    steps = lambda: {path.name for path in all_kept.glob("jit_traced-*")}
    assert runs.train(tmp_path / "whole", *options) == 0
    compiled = steps()
    assert len(compiled) == 2  # of training and evaluation

    jax.clear_caches()
    runs.PROGRAMS.clear()
    events.clear()
    workdir = stopped(tmp_path / "run", *options)
    assert runs.train(workdir, *options) == 0
    assert "/jax/compilation_cache/cache_hits" in events
    assert steps() == compiled
    assert_same_run(workdir, tmp_path / "whole")
