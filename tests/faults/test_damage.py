"""Checkpoints that are damaged on disk, and states that are not saved because they are not finite."""

import re
import shutil

import numpy as np
import pytest

import train.loop
from tests.faults.stopping import QUICK, assert_same_run, error, steps
from tests.runs import records, stored
from tests.runs import train as run
from train.errors import UserError
from train.run import integrity
from train.run.stored import load_run


@pytest.mark.parametrize("fault", ["flipped", "missing", "short"])
def test_damage_in_any_file_of_a_checkpoint_is_noticed(fault, alone, tmp_path):
    folder = shutil.copytree(alone / "checkpoints" / "16", tmp_path / "16")
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
    path = largest(copy / "checkpoints/16")
    flip(path)
    damaged = path.read_bytes()
    # A kill during a write leaves a folder of another name; a kill while Orbax deletes an old one leaves some files.
    shutil.copytree(copy / "checkpoints/14", copy / "checkpoints/15.orbax-checkpoint-tmp")
    shutil.rmtree(copy / "checkpoints/9/metrics")
    assert run(copy, *QUICK) == 0
    out, err = capsys.readouterr()
    assert "continues after step 14" in out
    assert err.startswith(f"warning: the checkpoint {copy}/checkpoints/16 is damaged (state/")
    assert err.endswith(f"moved to {copy}/damaged/16\n")
    assert err.count("\n") == 1
    assert (copy / "damaged" / path.relative_to(copy / "checkpoints")).read_bytes() == damaged
    assert not list((copy / "checkpoints").glob("*tmp*"))
    assert_same_run(copy, alone)

    flip(largest(copy / "checkpoints/16"))  # again: the first keeps its name
    assert run(copy, *QUICK) == 0
    assert sorted(p.name for p in (copy / "damaged").iterdir()) == ["16", "16-2"]


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
    for number in steps(copy):
        flip(largest(copy / f"checkpoints/{number}"))
    with pytest.raises(UserError, match=r"the checkpoint .* is damaged: state/"):
        load_run(copy)


def test_parameters_that_are_no_numbers_are_not_saved(tmp_path, monkeypatch, capsys):
    """The loss depends on the parameters before the step, so it can be finite when those after the step are not."""
    monkeypatch.setattr(train.loop, "all_finite", lambda params: False)
    assert run(tmp_path, *QUICK) == 1
    message = error(capsys, "stopped: a parameter is not finite after step 7. ")
    assert f"In {tmp_path} there is no checkpoint yet. Try a smaller --optim.lr" in message
    assert steps(tmp_path) == []


def test_diverging_run_stops_with_advice_and_a_finite_checkpoint(tmp_path, capsys):
    options = ("--optim.name=sgd", "--optim.lr=1e30", "--optim.clip-norm=0", "--optim.warmup-epochs=0.2")
    # The learning rate starts at zero: the first checkpoints are good.
    assert run(tmp_path, *options, "--steps=40", "--eval-epochs=0.02", "--optim.weight-decay=0") == 1
    message = error(capsys, "stopped: the loss is ")
    found = re.match(r".*(nan|inf) .*step (\d+)\. In (\S+) the last good checkpoint is step (\d+)", message)
    assert found, message
    assert "--optim.lr" in message
    assert found[3] == str(tmp_path)
    last = int(found[4])
    assert last < int(found[2])
    assert steps(tmp_path)[-1] == last
    state, _ = stored(tmp_path, last)
    assert all(np.isfinite(leaf).all() for leaf in state.values())
    assert records(tmp_path, "eval")[-1]["step"] == last
