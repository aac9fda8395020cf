"""Runs that learn labels or numbers: metrics, the best checkpoint, and predictions."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score

from tests.runs import error, records, train, write_digits
from train.data import Dataset, load_dataset
from train.data_kinds import KINDS
from train.predict import main as predict
from train.probe import main as probe
from train.run.stored import load_run

LABELS = ("even", "small", "round")
COLUMNS = ("centre", "width")
STEPS = ("--steps=88", "--eval-epochs=1", "--optim.warmup-epochs=0.2", "--label-smoothing=0", "--batch-size=64")


def labelled(config, *, labels=True) -> Dataset:
    """The digits, with labels or numbers in place of classes."""
    dataset = load_dataset(dataclasses.replace(config, target="class"), labels=labels)

    def of(source):
        digit, ink, place = source.labels, source.images.sum((1, 3)), np.arange(8)  # ink of each column of pixels
        centre = ink @ place / ink.sum(1)
        width = ink @ place**2 / ink.sum(1) - centre**2
        kinds = {
            "multilabel": np.stack([digit % 2 == 0, digit < 5, np.isin(digit, (0, 6, 8, 9))], axis=1),
            "regression": np.stack([2000 + centre, width / 1000], axis=1),
        }
        return dataclasses.replace(source, labels=kinds[config.target].astype(np.float32))

    names = LABELS if config.target == "multilabel" else COLUMNS
    return dataclasses.replace(dataset, train=of(dataset.train), eval=of(dataset.eval), class_names=names)


@pytest.fixture(autouse=True)
def digits_with_targets(monkeypatch):
    monkeypatch.setitem(KINDS, "digits", dataclasses.replace(KINDS["digits"], options=("target",)))
    monkeypatch.setattr("train.setup.load_dataset", labelled)


@pytest.fixture
def digit_file(tmp_path):
    write_digits(tmp_path, [5])
    (file,) = tmp_path.rglob("*.png")
    return file


def predictions(workdir):
    """What the best checkpoint of a run predicts for the evaluation images, and their targets."""
    run = load_run(workdir)
    source = labelled(run.config.data).eval
    return run, np.asarray(run.predict_pixels(source.images), np.float64), source.labels


def test_labels(tmp_path, capsys, digit_file):
    assert train(tmp_path / "run", "--data.target=multilabel", "--class-weights=balanced", *STEPS) == 0
    said = capsys.readouterr().out
    run, probabilities, targets = predictions(tmp_path / "run")
    found = records(tmp_path / "run", "eval")
    best = max(found, key=lambda record: (record["mean_average_precision"], record["step"]))
    assert f"best at step {best['step']} by mean average precision: loss" in said
    assert "class weights even " in said
    expected = average_precision_score(targets, probabilities, average="macro")
    np.testing.assert_allclose(best["mean_average_precision"], expected, rtol=1e-6)
    for kind in ("micro", "macro"):
        np.testing.assert_allclose(best[f"f1_{kind}"], f1_score(targets, probabilities > 0.5, average=kind), rtol=1e-6)
    np.testing.assert_allclose(best["label_accuracy"], ((probabilities > 0.5) == targets).mean(), rtol=1e-6)
    assert best["examples"] == len(targets) == 360
    assert best["mean_average_precision"] > 0.75  # the mean of the shares of labels is 0.47
    present = labelled(run.config.data).train.labels.mean(axis=0)
    np.testing.assert_allclose(run.info.class_weights, (1 - present) / present, rtol=1e-6)

    of_file = run.predict(digit_file)
    assert of_file.keys() == set(LABELS)
    assert list(of_file.values()) == sorted(of_file.values(), reverse=True)
    assert predict([str(digit_file), f"--workdir={tmp_path / 'run'}"]) == 0
    assert "the probability of each label is independent" in capsys.readouterr().out
    table = tmp_path / "table.csv"
    assert predict([str(digit_file), f"--workdir={tmp_path / 'run'}", f"--out={table}"]) == 0
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert list(row) == ["path", "labels", "error", *(f"p({name})" for name in LABELS)]
    capsys.readouterr()
    assert probe([f"--workdir={tmp_path / 'run'}"]) == 2
    assert "a probe needs one class for each image" in capsys.readouterr().err
    assert row["labels"] == "; ".join(name for name in LABELS if of_file[name] >= 0.5)


def test_numbers(tmp_path, capsys, digit_file):
    """`centre` is about 2003.5, so that a result that is not scaled back to its units is far off."""
    assert train(tmp_path / "run", "--data.target=regression", "--loss=huber", *STEPS) == 0
    said = capsys.readouterr().out
    run, numbers, targets = predictions(tmp_path / "run")
    assert run.info.target_mean[0] == pytest.approx(2003.5, abs=0.3)
    found = records(tmp_path / "run", "eval")
    best = max(found, key=lambda record: (record["r2"], record["step"]))
    assert f"best at step {best['step']} by R2: loss" in said
    np.testing.assert_allclose(best["r2"], r2_score(targets, numbers), rtol=1e-3)
    np.testing.assert_allclose(best["mae"], mean_absolute_error(targets, numbers), rtol=1e-3)
    assert best["r2"] > 0.3  # the mean of the numbers has 0

    of_file = run.predict(digit_file)
    assert list(of_file) == list(COLUMNS)
    assert 2001 < of_file["centre"] < 2006
    assert predict([str(digit_file), f"--workdir={tmp_path / 'run'}"]) == 0
    shown = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split() for line in shown] == [[f"{value:.6g}", name] for name, value in of_file.items()]
    table = tmp_path / "table.jsonl"
    assert predict([str(digit_file), f"--workdir={tmp_path / 'run'}", f"--out={table}"]) == 0
    assert json.loads(table.read_text()) == {"path": str(digit_file), "numbers": pytest.approx(of_file)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.target=regression", "--loss=softmax"], "--loss is softmax; with --data.target=regression it must be"),
        (["--loss=huber"], "--loss is huber; with --data.target=class it must be softmax or sigmoid"),
        (["--data.target=regression", "--class-weights=balanced"], "--class-weights is set with --data.target=regress"),
        (["--data.target=multilabel", "--data.sampler=balanced"], "--data.sampler is balanced; with --data.target=mul"),
        (
            ["--data.target=multilabel", "--objective=mae"],
            "--data.target is multilabel, which objective 'mae' does not",
        ),
        (["--objective=regress"], "--objective regress does not learn classes: it needs another --data.target"),
        (["--class-weights", "3=x"], "--class-weights 3=x: expected balanced, NAME=WEIGHT ..., or a number for each"),
        (["--class-weights", "3=2", "1"], "--class-weights 3=2 1: expected balanced, NAME=WEIGHT"),
        (["--class-weights", "1", "-2"], "--class-weights -2: expected balanced"),
        (["--class-weights=balanced", "--loss=sigmoid"], "--class-weights is set with --loss=sigmoid"),
        (["--class-weights=balanced", "--objective=mae", "--model=vit"], "'mae' does not use it"),
    ],
)
def test_options_that_do_not_fit(options, said, tmp_path, capsys):
    assert said in error(capsys, tmp_path, *options)
