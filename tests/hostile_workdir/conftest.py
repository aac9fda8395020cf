"""A finished run, and a copy of it for each test."""

import shutil

import pytest

from tests.hostile_workdir import QUICK
from tests.runs import train as run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A workdir with checkpoints of steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert run(workdir, *QUICK) == 0
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of `finished` that a test may damage."""
    return shutil.copytree(finished, tmp_path / "run")
