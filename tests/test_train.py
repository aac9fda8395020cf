"""A run from end to end: it learns, logs, and predicts."""

import contextlib
import io
import json
import re
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

import train.loop
import train.program
import train.setup
from tests.runs import flat, no_step, records, stored, write_digits
from tests.runs import train as run
from train.build import build_objective
from train.config import Data
from train.data import load_dataset
from train.predict import main as predict
from train.run.stored import load_run, read_run_file

SMALL = ("--model=vit", "--model-args", "dim=32", "depth=2", "heads=2", "mlp_dim=64")
OPTIONS = ("--steps=240", "--eval-epochs=3", "--optim.ema=0.98", "--eval-batch-size=104", "--log-steps=50")


@pytest.fixture(scope="module")
def learning(tmp_path_factory):
    """The workdir of a run that has learned, its output, and the functions that were traced meanwhile."""
    workdir, said, traced = tmp_path_factory.mktemp("learned"), io.StringIO(), []  # capsys does not outlive a test
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        for name in ("prepare_training", "prepare_evaluation"):
            original = getattr(train.program, name)

            def noted(*arguments, name=name, original=original):
                prepare = original(*arguments)
                return lambda *inputs: traced.append(name) or prepare(*inputs)

            patch.setattr(train.program, name, noted)
        assert run(workdir, *OPTIONS, base=SMALL, curves=True) == 0
    return workdir, said.getvalue(), traced


@pytest.fixture(scope="module")
def learned(learning):
    """The workdir of that run."""
    return learning[0]


def events(workdir):
    """{tag: [(step, value)]} of the TensorBoard files, which are TFRecords."""
    found = {}
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


# A whole run


def test_run_learns_digits(learned):
    assert records(learned, "eval")[-1]["accuracy"] > 0.8


def test_run_says_what_it_will_do_and_what_it_reached(learning):
    workdir, said, _ = learning
    _config, _info = read_run_file(workdir)
    parameters = sum(x.size for x in jax.tree.leaves(load_run(workdir).params))
    accuracy = records(workdir, "eval")[-1]["accuracy"]
    head, tail = said.split("compiled ")
    for pattern in (
        rf"model +vit/tiny patch_size=\(1, 8\) dim=32 .*, {parameters:,} parameters",
        r"data +digits: 1,437 training and 360 evaluation images, 8x8x1, 10 classes",
        r"augment +crop_padding 1",
        r"objective +classify",
        r"devices +2 x cpu \(cpu\), mesh data=2",
        r"dtype +float32",
        r"optimizer +adamw, learning rate 0.002, cosine",
        r"steps +240 of 64 images, 10\.7 passes over the training images, evaluation every 67 steps",
    ):
        assert re.search(pattern, head), pattern
    assert re.match(rf" +in [\d.]+ s\nworkdir +{workdir} \(new\)\n", tail)
    assert re.search(r"step 67/240  evaluation: loss [\d.]+, accuracy [\d.]+%", tail)
    best = max(records(workdir, "eval"), key=lambda record: (record["accuracy"], record["step"]))
    last = rf"done: loss [\d.]+, accuracy {accuracy:.2%} on 360 .* after 240 steps; "
    last += rf"best at step {best['step']} by accuracy: loss {best['loss']:.4f}, accuracy {best['accuracy']:.2%}\n"
    assert re.search(last, tail)
    assert "\x1b" not in said  # a log file gets lines, no bar


def test_metrics_hold_every_window_and_evaluation(learned):
    lines = [json.loads(line) for line in (learned / "metrics.jsonl").read_text().splitlines()]
    training = [r for r in lines if r["split"] == "train"]
    evaluation = [r for r in lines if r["split"] == "eval"]
    # A window ends after 50 steps, or before an evaluation.
    assert [r["step"] for r in training] == [50, 67, 117, 134, 184, 201, 240]
    assert [r["step"] for r in evaluation] == [67, 134, 201, 240]
    for record in training:
        assert {"step", "split", "loss", "accuracy", "lr", "images_per_second"} <= record.keys()
        assert record["images_per_second"] > 0
    assert all(r["examples"] == 360 for r in evaluation)
    # The recipe's rise of five epochs, then the cosine: the rate that each window's last step used.
    warmup = round(5 * 1437 / 64)
    rate = lambda s: 2e-3 * (s / warmup if s < warmup else (1 + np.cos(np.pi * (s - warmup) / (240 - warmup))) / 2)
    np.testing.assert_allclose([r["lr"] for r in training], [rate(r["step"] - 1) for r in training], rtol=1e-4)


def test_tensorboard_events_hold_the_same_numbers(learned):
    found = events(learned)
    for split in ("train", "eval"):
        for name in ("loss", "accuracy"):
            expected = [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in records(learned, split)]
            assert found[f"{split}/{name}"] == expected


def test_curves_are_drawn(learned):
    with Image.open(learned / "curves.png") as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == (1200, 480)
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for half in (pixels[:, :600], pixels[:, 600:]):  # loss and accuracy
        blue = (half[..., 2] - half[..., 0] > 60).sum()
        orange = (half[..., 0] - half[..., 2] > 120).sum()
        assert blue > 200, "no training curve"
        assert orange > 200, "no evaluation curve"


def test_evaluation_is_that_of_the_moving_average_over_every_image_once(learned):
    """The logged numbers against numpy on the whole split; 360 is not a multiple of the 104 images of a step."""
    config, info = read_run_file(learned)
    held_out = load_dataset(Data()).eval
    pixels = (held_out.images / 255 - np.array(info.mean)) / np.array(info.std)
    state, _ = stored(learned, 240)
    objective = build_objective(config, info)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), info.images)[0]

    def numbers(name):
        leaf = lambda path, _: jnp.asarray(state[f".{name}{jax.tree_util.keystr(path)}"])
        params = jax.tree_util.tree_map_with_path(leaf, shapes)
        logits = np.asarray(objective.predict(params, {}, jnp.asarray(pixels, np.float32)), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        loss = -log_p[np.arange(360), held_out.labels].mean()
        return loss, (logits.argmax(1) == held_out.labels).mean()

    logged = records(learned, "eval")[-1]
    loss, accuracy = numbers("ema")
    assert logged["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert logged["loss"] == pytest.approx(loss, rel=1e-5)
    assert numbers("params")[0] != pytest.approx(loss, rel=1e-3)


def test_steps_and_evaluations_are_traced_once(learning):
    assert sorted(learning[2]) == ["prepare_evaluation", "prepare_training"]


def test_a_step_gets_the_seed_of_the_run(tmp_path, monkeypatch):
    class Called(Exception):
        pass

    def step(_state, _batch, _frozen, seed):
        raise Called(seed)

    monkeypatch.setattr(train.setup, "compile_train_step", lambda *_: step)
    monkeypatch.setattr(train.setup, "compile_step", no_step)
    with pytest.raises(Called, match=r"^3000000000$"):
        run(tmp_path, "--seed=3000000000")


def test_the_seed_decides_on_parameters_and_batches(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(train.setup, "compile_step", no_step)
    monkeypatch.setattr(
        train.loop, "run", lambda session, _: begun.append((session.state, next(session.batches))) or {}
    )
    for seed in (0, 1):
        assert run(tmp_path / str(seed), f"--seed={seed}") == 0
    (first, batch), (second, other) = ((flat(state.params), batch) for state, batch in begun)
    kernels = [path for path in first if path.endswith("['kernel']")]
    assert len(kernels) > 4
    assert not any(np.allclose(first[path], second[path], atol=1e-2) for path in kernels)
    assert not np.array_equal(batch["image"], other["image"])


def test_finished_run_changes_nothing_when_started_again(learned, tmp_path, capsys):
    workdir = tmp_path / "again"
    shutil.copytree(learned, workdir)
    before = {p.relative_to(workdir): p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    assert run(workdir, *OPTIONS, base=SMALL, curves=True) == 0
    said = capsys.readouterr().out
    assert "continues after step 240" in said
    assert "done: " in said
    assert "compiling" not in said
    for path, content in before.items():
        assert (workdir / path).read_bytes() == content, path


# Prediction


def test_predict_prints_the_top_five_of_the_best_checkpoint(learned, tmp_path, capsys):
    paths, labels = write_digits(tmp_path, range(40))
    assert predict([*map(str, paths), "--workdir", str(learned)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::6] == [str(path) for path in paths]

    loaded = load_run(learned)
    held_out = load_dataset(Data()).eval
    pixels = (held_out.images[:40] / 255 - np.array(loaded.info.mean)) / np.array(loaded.info.std)
    logits = np.asarray(loaded.objective.predict(loaded.params, {}, jnp.asarray(pixels, np.float32)), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    first = []
    for i, row in enumerate(expected):
        rows = [line.split() for line in lines[6 * i + 1 : 6 * i + 6]]
        shares = [float(share.rstrip("%")) / 100 for share, _ in rows]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1.0005
        np.testing.assert_allclose(shares, [row[int(name)] for _, name in rows], atol=6e-5)
        np.testing.assert_allclose(shares, np.sort(row)[:-6:-1], atol=6e-5)
        first.append(int(rows[0][1]))
    assert np.mean(first == labels) > 0.8


def test_predict_shows_as_many_classes_as_asked_for(learned, tmp_path, capsys):
    (path,), _ = write_digits(tmp_path, [0])
    assert predict([str(path), "--workdir", str(learned), "--top", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert sorted(line.split()[1] for line in lines) == list("0123456789")
    assert sum(float(line.split()[0].rstrip("%")) for line in lines) == pytest.approx(100, abs=0.06)


@pytest.mark.slow
def test_predict_refuses_in_one_line(learned, tmp_path, capsys):
    (good,), _ = write_digits(tmp_path, [0])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(learned / "config.json", unfinished)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model": "another program\'s"}')
    for image, workdir, named in (
        (good, tmp_path / "nowhere", "nowhere"),
        (good, tmp_path / "empty", "empty"),
        (good, foreign, "foreign"),
        (good, unfinished, "no checkpoint"),
        (tmp_path / "text.png", learned, "text.png"),
        (tmp_path / "missing.png", learned, "missing.png"),
        (tmp_path / "empty", learned, "contains no images"),
    ):
        assert predict([str(image), "--workdir", str(workdir)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert named in err
    assert sorted(p.name for p in unfinished.iterdir()) == ["config.json"]
    assert predict(["--workdir", str(learned)]) == 2
    assert capsys.readouterr().err.startswith("error: IMAGES is missing")
