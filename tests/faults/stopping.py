"""Stop small runs at a chosen moment, and compare what they leave."""

import os
import signal

import numpy as np
import pytest

import train.loop
from tests.runs import RANDOM, assert_same, records, stored
from tests.runs import train as run

LAST = 16
# An evaluation every 9 steps, a checkpoint every 7, and windows of 2 steps that neither divides.
QUICK = (*RANDOM, f"--steps={LAST}", "--eval-epochs=0.2", "--save-steps=7", "--keep=3")


def before_batch(patch, number, action):
    """Call `action` before training batch `number` is put on the devices."""
    seen = []

    def to_devices(batch, mesh, original=train.loop.to_devices):
        seen.append("mask" not in batch)
        if "mask" not in batch and sum(seen) == number:
            action()
        return original(batch, mesh)

    patch.setattr(train.loop, "to_devices", to_devices)


def stopped(workdir, *options):
    """Stop a run in `workdir` after step 5."""
    with pytest.MonkeyPatch.context() as patch:
        before_batch(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(workdir, *options) == 143
    return workdir


def steps(workdir):
    """The steps of all checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def error(capsys, beginning):
    """The one-line error message of a run, which starts with `beginning`."""
    err = capsys.readouterr().err
    assert err.startswith(beginning), err
    assert err.count("\n") == 1, err
    return err


def assert_same_run(workdir, other):
    """Assert that two runs ended with the same state and records, bit for bit."""
    assert_same(stored(workdir, LAST)[0], stored(other, LAST)[0])
    for split in ("train", "eval"):
        assert records(workdir, split) == records(other, split)


def assert_close_run(workdir, other):
    """Assert that two runs on different devices ended alike."""
    state, expected = stored(workdir, LAST)[0], stored(other, LAST)[0]
    assert state.keys() == expected.keys()
    for path in state:
        # Sums are in another order. Adam's first steps are of full length even if a gradient is only rounding.
        np.testing.assert_allclose(state[path], expected[path], rtol=1e-3, atol=1e-4, err_msg=path)
    for split in ("train", "eval"):
        loss, expected_loss = ([r["loss"] for r in records(w, split)] for w in (workdir, other))
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
