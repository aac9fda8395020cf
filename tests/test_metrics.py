"""The logs of a run: records, averages over windows, curves, and lines without a terminal."""

import itertools
import json

import jax.numpy as jnp
import pytest
from PIL import Image

from train.errors import Diverged
from train.run import records as module
from train.run.curves import draw_curves
from train.run.files import write_atomically
from train.run.progress import Progress
from train.run.records import Metrics, TrainLog, check_finite, read_records


def written(workdir, *records):
    """A metrics.jsonl with (step, split, loss) records."""
    metrics = Metrics(workdir, 0)
    for step, split, loss in records:
        metrics.write(step, split, {"loss": loss})
    metrics.close()


def test_records_are_lines_of_json(tmp_path):
    written(tmp_path, (2, "train", 0.5), (2, "eval", 0.25))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 2, "split": "train", "loss": 0.5},
        {"step": 2, "split": "eval", "loss": 0.25},
    ]


def test_continuing_drops_what_will_be_done_again(tmp_path):
    written(tmp_path, (2, "train", 0.5), (4, "train", 0.4), (4, "eval", 0.3), (6, "train", 0.2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "spl')  # a kill
    metrics = Metrics(tmp_path, 4)
    metrics.write(6, "train", {"loss": 0.1})
    metrics.close()
    assert [(r["step"], r["loss"]) for r in read_records(tmp_path)] == [(2, 0.5), (4, 0.4), (4, 0.3), (6, 0.1)]


def test_records_appear_at_once(tmp_path):
    metrics = Metrics(tmp_path, 0)
    metrics.write(1, "train", {"loss": 1.0})
    assert [r["step"] for r in read_records(tmp_path)] == [1]  # records are not buffered, so a kill loses none
    metrics.close()


def test_whole_files_only(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A log with windows of three steps of 10 images, whose clock advances by a second per call, and its records."""
    clock = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    metrics = Metrics(tmp_path, 0)
    yield lambda: read_records(tmp_path), TrainLog(metrics, Progress(0, 20), lambda step: step / 10, 10, 3)
    metrics.close()


def values(loss):
    return {"loss": jnp.float32(loss), "accuracy": jnp.float32(loss / 10)}


def test_windows_are_means_written_one_step_late(log):
    records, log = log
    for step, loss in ((1, 1.0), (2, 2.0), (3, 6.0)):
        log.add(step, values(loss))
    assert records() == []  # step 3's numbers may not be there yet; fetching them would wait for them
    log.add(4, values(5.0))
    (record,) = records()
    assert (record["step"], record["split"]) == (3, "train")
    assert record["loss"] == pytest.approx(3.0)
    assert record["accuracy"] == pytest.approx(0.3)
    assert record["lr"] == pytest.approx(0.2)  # the schedule counts from zero
    assert record["images_per_second"] == pytest.approx(30)  # three steps of ten images in one second


def test_flushing_writes_all_that_is_left(log):
    records, log = log
    for step in range(1, 5):
        log.add(step, values(step))
    log.flush()
    assert [(r["step"], r["loss"]) for r in records()] == [(3, 2.0), (4, 4.0)]
    log.flush()
    assert len(records()) == 2
    log.add(5, values(9.0))
    log.flush()
    assert records()[-1]["step"] == 5


def test_restarting_the_clock_leaves_out_the_time_before(log):
    records, log = log
    for _ in range(5):
        module.time.perf_counter()  # an evaluation of five seconds
    log.restart_clock()
    for step in range(1, 4):
        log.add(step, values(1.0))
    log.flush()
    assert records()[0]["images_per_second"] == pytest.approx(30)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_names_its_step(loss, log):
    _, log = log
    log.add(1, values(1.0))
    log.add(2, values(loss))
    with pytest.raises(Diverged, match=f"the loss is {loss} at step 2"):
        log.flush()
    with pytest.raises(Diverged, match=f"the loss is {loss} in the evaluation"):
        check_finite(loss, "in the evaluation")


def test_lines_take_the_place_of_the_bar(capsys):
    with Progress(0, 20) as progress:
        progress.message("[not markup] " + "x" * 200)
        progress.advance(3)
        progress.show(5, {"loss": 1.5, "accuracy": 0.25, "images_per_second": 1234.5})
    assert capsys.readouterr().out.rstrip().splitlines() == [  # older versions of rich end with an empty line
        "[not markup] " + "x" * 200,
        "step 5/20  loss 1.5000  accuracy 25.0%  1,234 images/s",
    ]


@pytest.mark.parametrize("splits", [("train",), ("eval",), ("train", "eval")])
def test_curves_of_whatever_there_is(splits, tmp_path):
    metrics = Metrics(tmp_path, 0)
    for step in range(10):
        for split in splits:
            metrics.write(step, split, {"loss": 1 / (step + 1), "accuracy": step / 10})
    metrics.close()
    path = draw_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    with Image.open(path) as image:
        image.load()
        assert image.size == (1200, 480)
    assert not list(tmp_path.glob("*tmp*"))
