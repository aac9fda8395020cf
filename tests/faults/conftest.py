"""Runs that the tests of faults share."""

import shutil

import pytest

from tests.faults.stopping import QUICK
from tests.runs import flat, recording
from tests.runs import train as run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The workdir of an uninterrupted run, which keeps all checkpoints, and {step: state} when each was begun."""
    workdir = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        states = recording(patch)
        assert run(workdir, *QUICK, "--keep=100") == 0
    return workdir, {step: flat(state) for step, state in states.items()}


@pytest.fixture(scope="session")
def alone(undisturbed):
    """The workdir of that run."""
    return undisturbed[0]


@pytest.fixture
def copy(alone, tmp_path):
    """A copy of that workdir, which a test may damage."""
    return shutil.copytree(alone, tmp_path / "run")
