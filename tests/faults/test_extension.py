"""A run that becomes longer: how its schedule continues, and that a killed extended run ends with the same bits."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest

from tests.faults.stopping import LAST, before_batch, error, steps
from tests.runs import TINY, assert_same, records, stored
from tests.runs import train as run
from train.build import DataInfo
from train.config import Optim
from train.errors import UserError
from train.extension import extensions_of, with_former_length
from train.main import parse
from train.optim import Extension, make_schedule
from train.run.stored import read_stored
from train.run.workdir import claim_workdir
from train.validation import check_options

LONGER = 24
SHORT = ("--steps=16", "--eval-epochs=0.2", "--save-steps=7", "--optim.ema=0.9", "--optim.warmup-epochs=0.1")
BALANCED = (*SHORT, "--data.sampler=balanced", "--class-weights=balanced")
STRETCHED = (*BALANCED, f"--steps={LONGER}", "--extend=stretch")
PER_EPOCH = 1437 / 32
INFO = DataInfo(("a", "b"), (8, 8, 1), (0.5,), (0.25,))


def rates(total, *extensions):
    schedule = make_schedule(parse([*TINY, *SHORT]).optim, total, PER_EPOCH, extensions)
    return np.array([float(schedule(step)) for step in range(LONGER)], np.float32)


def test_an_extended_run_is_killed_and_ends_as_if_left_alone(tmp_path, monkeypatch, capsys):
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    assert run(whole, *BALANCED, "--keep=100") == 0
    shutil.copytree(whole, copy)
    before = records(whole, "train")
    capsys.readouterr()
    assert run(whole, *STRETCHED, "--keep=100") == 0
    said = capsys.readouterr().out
    assert "extended     from 16 steps (0.3563 epochs) to 24 steps (0.5344 epochs); after step 16 " in said
    assert "(continues after step 16)" in said
    assert [r["step"] for r in records(whole, "eval")] == [9, 16, 18, 24]  # every 9 steps, and at each end
    assert steps(whole) == [7, 9, 14, 16, 18, 21, 24]
    assert records(whole, "train")[:9] == before
    logged = {r["step"]: np.float32(r["lr"]) for r in records(whole, "train")}
    expected = np.where(np.arange(LONGER) < LAST, rates(LAST), rates(LONGER))
    np.testing.assert_allclose(list(logged.values()), [expected[step - 1] for step in logged], rtol=1e-5)

    with monkeypatch.context() as patch:
        before_batch(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(copy, *STRETCHED) == 143
    assert error(capsys, "preempted: ").startswith("preempted: saved after step 20/24; ")
    for lost in ((18, 20), (24,)):  # the kill came before these: it continues from the extension's start, then from 21
        for step in lost:
            shutil.rmtree(copy / "checkpoints" / str(step))
        assert run(copy, *STRETCHED, "--keep=100") == 0
        assert_same(stored(copy, LONGER)[0], stored(whole, LONGER)[0])
        for split in ("train", "eval"):
            assert records(copy, split) == records(whole, split)

    assert read_stored(copy).extensions == (Extension(LAST, LONGER, "stretch"),)


def test_schedules_of_extended_runs():
    optim = Optim(lr=0.1, warmup_epochs=0.0)
    kinds = (Extension(6, 20, "stretch"), Extension(20, 24, "constant", 0.03))
    schedule = make_schedule(optim, 12, PER_EPOCH, kinds)
    cosine = lambda step, total: 0.05 * (1 + np.cos(np.pi * step / total))
    expected = [cosine(step, 12 if step < 6 else 20) if step < 20 else 0.03 for step in range(24)]
    np.testing.assert_allclose([float(schedule(step)) for step in range(24)], expected, rtol=1e-5)


def extend(workdir, *options):
    """Claim a run of 16 steps, or with further options the same run again, and return its extensions."""
    config = parse([*TINY, *SHORT, f"--workdir={workdir}", *options])
    check_options(config)
    former = with_former_length(config)
    found = extensions_of(config, former, 1437)
    claim_workdir(former, INFO, extensions=found)
    (workdir / "checkpoints" / "5").mkdir(parents=True, exist_ok=True)
    return found


def test_what_a_longer_run_needs_is_said(tmp_path):
    assert extend(tmp_path) == ()
    before = (tmp_path / "config.json").read_bytes()
    longer = f"--steps={LONGER}"
    for options, said in (
        ((longer,), "steps (0.5344 epochs): pass --extend=stretch for the learning rates of a run of this length, or "),
        (("--extend=stretch",), "already; pass a larger --epochs or --steps"),
        ((longer, "--extend=stretch", "--extend-lr=1"), "--extend-lr 1 needs --extend=constant"),
        ((longer, "--extend=constant"), "cosine schedule has ended with a learning rate of 0, with which nothing is"),
        (("--steps=8",), "16 steps (0.3563 epochs), and --steps, --epochs and --min-steps give 8 steps"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            extend(tmp_path, *options)
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(UserError, match=f"there is no run in --workdir {tmp_path}/new to make longer"):
        extend(tmp_path / "new", longer, "--extend=stretch")
    assert not (tmp_path / "new").exists()


def test_extensions_are_recorded_and_cannot_change(tmp_path):
    assert extend(tmp_path) == ()
    stretch = (f"--steps={LONGER}", "--extend=stretch")
    first = Extension(5, LONGER, "stretch")
    assert extend(tmp_path, *stretch) == extend(tmp_path, *stretch) == extend(tmp_path, f"--steps={LONGER}") == (first,)
    with pytest.raises(UserError, match="was extended by --extend=stretch; that cannot change"):
        extend(tmp_path, stretch[0], "--extend=constant")
    with pytest.raises(UserError, match="a run can become longer, not shorter"):
        extend(tmp_path)  # the command of the beginning
    second = Extension(LONGER, 90, "constant", 1e-3)
    # Two epochs, which have as many steps as in the beginning.
    assert extend(tmp_path, "--steps=None", "--epochs=2", "--extend=constant", "--extend-lr=1e-3") == (first, second)
    with pytest.raises(UserError, match=r"extended by --extend=constant --extend-lr=0\.001; that cannot change"):
        extend(tmp_path, "--steps=90", "--extend=constant", "--extend-lr=2e-3")
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["config"]["steps"] == LAST
    stored["extensions"][1]["lr"] = None
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="extensions with the schedule constant, and no others, must have a number"):
        extend(tmp_path)


def test_a_constant_rate_is_the_last_of_the_schedule(tmp_path):
    for kind, final in (("cosine", 1e-4), ("constant", 2e-3)):
        options = (f"--optim.schedule={kind}", "--optim.final-lr=1e-4")
        assert extend(tmp_path / kind, *options) == ()
        (extension,) = extend(tmp_path / kind, *options, f"--steps={LONGER}", "--extend=constant")
        assert extension == (LAST, LONGER, "constant", pytest.approx(final))
    # A schedule that does not depend on the run's length needs no option.
    assert extend(tmp_path / kind, *options, "--steps=40")[1:] == (Extension(5, 40, "stretch"),)
