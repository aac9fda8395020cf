"""Checkpoints between and at evaluations, and runs that continue from them, also on another mesh."""

import numpy as np
import pytest

import train.loop
from tests.faults.stopping import LAST, QUICK, assert_close_run, assert_same_run, steps, stopped
from tests.runs import assert_same, records, stored
from tests.runs import train as run
from train.run.checkpoint import open_checkpoints
from train.scores import score


def test_checkpoints_between_evaluations(alone):
    assert steps(alone) == [7, 9, 14, 16]
    manager = open_checkpoints(alone)
    assert manager.metrics(14) == {}
    assert manager.best_step() in (9, 16)
    manager.close()
    assert [r["step"] for r in records(alone, "eval")] == [9, 16]
    assert [r["step"] for r in records(alone, "train")] == [2, 4, 6, 8, 9, 11, 13, 15, 16]


def test_what_was_not_evaluated_is_never_the_best():
    assert score({}) < score({"loss": 1e30})
    assert score({"loss": 2.0}) < score({"loss": 1.0}) < score({"loss": 3.0, "accuracy": 0.1})


def test_checkpoints_hold_the_state_of_their_step(undisturbed):
    """Checkpoints are written while the next steps reuse the state's memory."""
    workdir, states = undisturbed
    assert list(states) == [7, 9, 14, 16]
    for step, state in states.items():
        kept, _ = stored(workdir, step)
        assert_same(kept, state)
        assert kept[".step"] == step
        assert not any("teacher" in path for path in kept)


def interrupt_after(patch, batches):
    """Raise KeyboardInterrupt instead of returning a batch."""
    seen = []

    def to_devices(batch, mesh, original=train.loop.to_devices):
        seen.append("mask" not in batch)
        if sum(seen) > batches:
            raise KeyboardInterrupt
        return original(batch, mesh)

    patch.setattr(train.loop, "to_devices", to_devices)


def test_interrupted_run_continues_bit_for_bit(alone, tmp_path, monkeypatch, capsys):
    options = (*QUICK, "--keep=1")
    for batches in (3, 12):  # before the first checkpoint; three steps after that of step 9
        with monkeypatch.context() as patch:
            interrupt_after(patch, batches)
            assert run(tmp_path, *options) == 130
        assert capsys.readouterr().err == "interrupted: the same command continues from the last checkpoint\n"
    with (tmp_path / "metrics.jsonl").open("a") as file:  # a kill in the middle of a line
        file.write('{"step": 11, "split": "tr')
    (tmp_path / "config.json.123.tmp").write_text('{"config": {"mod')
    assert run(tmp_path, *options) == 0
    assert "(continues after step 9)" in capsys.readouterr().out

    assert_same_run(tmp_path, alone)
    assert stored(tmp_path, LAST)[1] == stored(alone, LAST)[1]
    evaluations = {record["step"]: record["accuracy"] for record in records(tmp_path, "eval")}
    *best, last = steps(tmp_path)
    assert last == LAST
    assert evaluations[min(best, default=last)] == max(evaluations.values())


@pytest.mark.parametrize("target", ["multilabel", "regression"])
def test_runs_on_labels_and_numbers_continue_bit_for_bit(tmp_path, target, capsys):
    rng = np.random.default_rng(0)
    targets = {"multilabel": rng.integers(0, 2, (360, 3)), "regression": rng.normal(5, 3, 360)}[target]
    data = tmp_path / "data.npz"
    np.savez(data, images=rng.integers(0, 256, (360, 8, 8), np.uint8), labels=targets)
    weights = ("--class-weights=balanced",) if target == "multilabel" else ()
    of_data = (f"--data=array:{data}", f"--data.target={target}", *weights)
    options = (f"--steps={LAST}", "--save-steps=7", "--eval-epochs=1", *of_data)
    one, other = tmp_path / "one", stopped(tmp_path / "other", *options)
    for workdir in (one, other):
        assert run(workdir, *options) == 0
    out = capsys.readouterr().out
    assert "continues after step 5" in out
    assert f"8x8x1, {'3 labels' if weights else '1 number'}\n" in out
    assert_same_run(one, other)


@pytest.mark.parametrize("name", ["muon", "schedule_free_adamw"])
def test_other_optimizers_continue_bit_for_bit(name, tmp_path):
    options = (f"--optim.name={name}", f"--steps={LAST}", "--eval-epochs=1", "--optim.warmup-epochs=0.1")
    one, other = tmp_path / "one", stopped(tmp_path / "other", *options)
    for workdir in (one, other):
        assert run(workdir, *options) == 0
    assert_same_run(one, other)


@pytest.mark.parametrize("placements", [("devices", "host"), ("host", "devices")])
def test_another_placement_of_images_continues_bit_for_bit(placements, alone, tmp_path, capsys):
    for placement, begin in zip(placements, (stopped, run), strict=True):
        begin(tmp_path, *QUICK, f"--data.placement={placement}")
        said = capsys.readouterr().out
        assert ("training images are kept on the devices, 0.09 MiB on each" in said) == (placement == "devices")
    assert_same_run(tmp_path, alone)


def test_another_mesh_continues(alone, tmp_path, capsys):
    stopped(tmp_path, *QUICK)
    assert run(tmp_path, *QUICK, "--mesh=tensor=2", devices=2) == 0
    out = capsys.readouterr().out
    assert "mesh data=1,tensor=2" in out
    assert "continues after step 5" in out
    assert_close_run(tmp_path, alone)
