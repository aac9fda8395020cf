"""Runs from end to end: they learn, log, resume exactly, and predict."""

import contextlib
import io
import json
import random
import re
import shutil
import signal
import struct
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

import train.loop
import train.program
from tests.runs import RANDOM, TINY, assert_same, flat, records, start, stored
from tests.runs import train as run
from train.build import build_objective
from train.config import Data
from train.data import load_dataset
from train.predict import main as predict
from train.run import checkpoint
from train.run.stored import load_run, read_run_file
from vit_jax.objectives.distill import Teacher

SMALL = ("--model=vit", "--model-args", "dim=32", "depth=2", "heads=2", "mlp_dim=64")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The workdir of a run that has learned, and its output."""
    workdir = tmp_path_factory.mktemp("learned")
    options = ("--steps=240", "--eval-epochs=3", "--optim.ema=0.98", "--eval-batch-size=104", "--log-steps=50")
    said = io.StringIO()  # capsys does not outlive a test
    with contextlib.redirect_stdout(said):
        assert run(workdir, *options, base=SMALL) == 0
    return workdir, said.getvalue()


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
    workdir, _ = learned
    assert records(workdir, "eval")[-1]["accuracy"] > 0.8


def test_run_says_what_it_will_do_and_what_it_reached(learned):
    workdir, said = learned
    _config, _info = read_run_file(workdir)
    parameters = sum(x.size for x in jax.tree.leaves(load_run(workdir).params))
    accuracy = records(workdir, "eval")[-1]["accuracy"]
    head, tail = said.split("compiled ")
    for pattern in (
        rf"model +vit/tiny patch_size=\(1, 8\) dim=32 .*, {parameters:,} parameters",
        r"data +digits: 1,437 training and 360 evaluation images, 8x8x1, 10 classes",
        r"augment +crop_padding 1",
        r"objective +classify",
        r"devices +8 x cpu \(cpu\), mesh data=8",
        r"dtype +float32",
        r"optimizer +adamw, learning rate 0.002, cosine",
        r"steps +240 of 64 images \(10.7 epochs\), evaluation every 67",
    ):
        assert re.search(pattern, head), pattern
    assert re.match(rf" +in [\d.]+ s\nworkdir +{workdir} \(new\)\n", tail)
    assert re.search(r"step 67/240  evaluation: loss [\d.]+, accuracy [\d.]+%", tail)
    best = max(records(workdir, "eval"), key=lambda record: (record["accuracy"], record["step"]))
    last = rf"done: loss [\d.]+, accuracy {accuracy:.2%} on 360 .* after 240 steps; "
    last += rf"best at step {best['step']}: loss {best['loss']:.4f}, accuracy {best['accuracy']:.2%}\n"
    assert re.search(last, tail)
    assert "\x1b" not in said  # a log file gets lines, no bar


def test_metrics_hold_every_window_and_evaluation(learned):
    workdir, _ = learned
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
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
    workdir, _ = learned
    found = events(workdir)
    for split in ("train", "eval"):
        for name in ("loss", "accuracy"):
            expected = [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in records(workdir, split)]
            assert found[f"{split}/{name}"] == expected


def test_curves_are_drawn(learned):
    workdir, _ = learned
    with Image.open(workdir / "curves.png") as image:
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
    workdir, _ = learned
    config, info = read_run_file(workdir)
    held_out = load_dataset(Data()).eval
    pixels = (held_out.images / 255 - np.array(info.mean)) / np.array(info.std)
    state, _ = stored(workdir, 240)
    objective = build_objective(config, info)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), info.images)[0]

    def numbers(name):
        leaf = lambda path, _: jnp.asarray(state[f".{name}{jax.tree_util.keystr(path)}"])
        params = jax.tree_util.tree_map_with_path(leaf, shapes)
        logits = np.asarray(objective.predict(params, {}, jnp.asarray(pixels, np.float32)), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        loss = -log_p[np.arange(360), held_out.labels].mean()
        return loss, (logits.argmax(1) == held_out.labels).mean()

    logged = records(workdir, "eval")[-1]
    loss, accuracy = numbers("ema")
    assert logged["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert logged["loss"] == pytest.approx(loss, rel=1e-5)
    assert numbers("params")[0] != pytest.approx(loss, rel=1e-3)


def test_finished_run_changes_nothing_when_started_again(learned, tmp_path, capsys):
    workdir = tmp_path / "again"
    shutil.copytree(learned[0], workdir)
    before = {p.relative_to(workdir): p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    options = ("--steps=240", "--eval-epochs=3", "--optim.ema=0.98", "--eval-batch-size=104", "--log-steps=50")
    assert run(workdir, *options, base=SMALL) == 0
    said = capsys.readouterr().out
    assert "continues after step 240" in said
    assert "done: " in said
    assert "compiling" not in said
    for path, content in before.items():
        assert (workdir / path).read_bytes() == content, path


# Prediction


def write_digits(folder, indices):
    """Held-out digits as image files."""
    held_out = load_dataset(Data()).eval
    paths = [folder / f"{i}.png" for i in indices]
    for i, path in zip(indices, paths, strict=True):
        Image.fromarray(held_out.images[i, ..., 0]).save(path)
    return paths, held_out.labels[list(indices)]


def test_predict_prints_the_top_five_of_the_best_checkpoint(learned, tmp_path, capsys):
    workdir, _ = learned
    paths, labels = write_digits(tmp_path, range(40))
    assert predict([*map(str, paths), "--workdir", str(workdir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::6] == [str(path) for path in paths]

    loaded = load_run(workdir)
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
    assert predict([str(path), "--workdir", str(learned[0]), "--top", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert sorted(line.split()[1] for line in lines) == list("0123456789")
    assert sum(float(line.split()[0].rstrip("%")) for line in lines) == pytest.approx(100, abs=0.06)


def test_predict_refuses_in_one_line(learned, tmp_path, capsys):
    (good,), _ = write_digits(tmp_path, [0])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(learned[0] / "config.json", unfinished)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model": "another program\'s"}')
    for image, workdir, named in (
        (good, tmp_path / "nowhere", "nowhere"),
        (good, tmp_path / "empty", "empty"),
        (good, foreign, "foreign"),
        (good, unfinished, "no checkpoint"),
        (tmp_path / "text.png", learned[0], "text.png"),
        (tmp_path / "missing.png", learned[0], "missing.png"),
        (tmp_path, learned[0], str(tmp_path)),
    ):
        assert predict([str(image), "--workdir", str(workdir)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert named in err
    assert sorted(p.name for p in unfinished.iterdir()) == ["config.json"]
    assert predict(["--workdir", str(learned[0])]) == 2
    assert capsys.readouterr().err.startswith("error: IMAGES is missing")


# Interrupted runs

QUICK = (*RANDOM, "--steps=24", "--eval-epochs=0.1", "--keep=2")  # an evaluation every 4 steps


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The workdir of an uninterrupted run, and the state at the start of each checkpoint."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    states = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", recording(states))
        assert run(workdir, *QUICK[:-1], "--keep=100") == 0
    return workdir, {step: flat(state) for step, state in states.items()}


def recording(states):
    save = checkpoint.save

    def recorder(manager, step, state, data, metrics):
        # A copy on the device: a numpy view of the state would keep its memory from being reused.
        states[step] = jax.tree.map(jnp.copy, state)
        save(manager, step, state, data, metrics)

    return recorder


def test_checkpoints_hold_the_state_of_their_step(undisturbed):
    """Checkpoints are written while the next steps reuse the state's memory."""
    workdir, states = undisturbed
    assert list(states) == [4, 8, 12, 16, 20, 24]
    for step, state in states.items():
        kept, _ = stored(workdir, step)
        assert_same(kept, state)
        assert kept[".step"] == step
        assert not any("teacher" in path for path in kept)


def interrupt_after(patch, batches):
    """Raises KeyboardInterrupt instead of returning a batch."""
    seen = []

    def to_devices(batch, mesh, original=train.loop.to_devices):
        seen.append("mask" not in batch)
        if sum(seen) > batches:
            raise KeyboardInterrupt
        return original(batch, mesh)

    patch.setattr(train.loop, "to_devices", to_devices)


def test_interrupted_run_continues_bit_for_bit(undisturbed, tmp_path, monkeypatch, capsys):
    workdir, states = undisturbed
    for batches in (3, 10):  # before the first checkpoint; two steps after that of step 8
        with monkeypatch.context() as patch:
            interrupt_after(patch, batches)
            assert run(tmp_path, *QUICK) == 130
        assert capsys.readouterr().err == "interrupted: the same command continues from the last checkpoint\n"
    with (tmp_path / "metrics.jsonl").open("a") as file:  # a kill in the middle of a line
        file.write('{"step": 11, "split": "tr')
    (tmp_path / "config.json.123.tmp").write_text('{"config": {"mod')
    assert run(tmp_path, *QUICK) == 0
    assert "(continues after step 8)" in capsys.readouterr().out

    state, position = stored(tmp_path, 24)
    assert_same(state, states[24])
    assert position == stored(workdir, 24)[1]
    for split in ("train", "eval"):
        assert records(tmp_path, split) == records(workdir, split)
    best = max(records(tmp_path, "eval"), key=lambda r: r["accuracy"])["accuracy"]
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert kept[-2:] == [20, 24]
    assert best in [r["accuracy"] for r in records(tmp_path, "eval") if r["step"] in kept]


@pytest.mark.slow
def test_killed_run_ends_as_if_left_alone(tmp_path):
    rng = random.Random(0)
    options = (*RANDOM, "--steps=32", "--eval-epochs=0.1", "--keep=2")
    alone, killed = tmp_path / "alone", tmp_path / "killed"

    def writing():
        return any("tmp" in p.name for p in (killed / "checkpoints").iterdir())

    def written():
        return any(p.name.isdigit() for p in (killed / "checkpoints").iterdir())

    def later():
        wait_for(written)
        time.sleep(rng.uniform(0, 0.1))

    for at_line, then in (
        ("step 2/32", lambda: None),  # before the first checkpoint
        ("evaluation: ", later),  # at a random moment after it
        ("evaluation: ", lambda: wait_for(writing)),  # while a checkpoint is written
    ):
        process = start(killed, *options)
        for line in process.stdout:
            if at_line in line:
                break
        then()
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    for workdir, line in ((killed, "continues after step"), (alone, "(new)")):
        process = start(workdir, *options)
        said, _ = process.communicate()
        assert process.returncode == 0, said
        assert line in said

    state, position = stored(killed, 32)
    other, other_position = stored(alone, 32)
    assert_same(state, other)
    assert position == other_position
    for split in ("train", "eval"):
        assert records(killed, split) == records(alone, split)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)


# Events that stop a run


def test_diverging_run_stops_with_advice_and_a_finite_checkpoint(tmp_path, capsys):
    options = ("--optim.name=sgd", "--optim.lr=1e30", "--optim.clip-norm=0", "--optim.warmup-epochs=0.2")
    # The learning rate starts at zero: the first checkpoints are good.
    assert run(tmp_path, *options, "--steps=40", "--eval-epochs=0.02", "--optim.weight-decay=0") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    match = re.match(
        r"stopped: the loss is (nan|inf) .*step (\d+)\. In (\S+) the last good checkpoint is step (\d+)", err
    )
    assert match, err
    assert "--optim.lr" in err
    assert match[3] == str(tmp_path)
    last = int(match[4])
    assert last < int(match[2])
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == last
    state, _ = stored(tmp_path, last)
    assert all(np.isfinite(leaf).all() for leaf in state.values())
    assert records(tmp_path, "eval")[-1]["step"] == last


def test_steps_and_evaluations_are_traced_once_and_seeds_matter(undisturbed, tmp_path, monkeypatch):
    traced = []
    for name in ("prepare_training", "prepare_evaluation"):
        original = getattr(train.program, name)

        def counting(*args, name=name, original=original):
            prepare = original(*args)
            return lambda *inputs: traced.append(name) or prepare(*inputs)

        monkeypatch.setattr(train.program, name, counting)
    assert run(tmp_path, *QUICK, "--steps=8", "--seed=1") == 0
    assert sorted(traced) == ["prepare_evaluation", "prepare_training"]
    state, first = stored(tmp_path, 8)[0], undisturbed[1][8]
    kernels = [path for path in state if path.startswith(".params") and path.endswith("['kernel']")]
    assert not any(np.allclose(state[path], first[path], atol=1e-2) for path in kernels)


# Distillation, and starting from weights


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher")
    assert run(workdir, "--steps=4") == 0
    return workdir


SOFT = ("--distill.temperature=3", "--distill.alpha=0.7", "--log-steps=1", "--steps=3")


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """The workdir of a ViT that was distilled from the teacher."""
    workdir = tmp_path_factory.mktemp("student")
    before = flat(load_run(teacher).params)
    assert run(workdir, f"--distill.teacher={teacher}", *SOFT) == 0
    assert_same(flat(load_run(teacher).params), before)
    return workdir


def check_student(workdir, alpha):
    for record in records(workdir, "train"):
        blend = (1 - alpha) * record["label_loss"] + alpha * record["teacher_loss"]
        assert record["loss"] == pytest.approx(blend, rel=1e-5)
    state, _ = stored(workdir, 3)
    assert ".params['distillation_token']" in state
    assert not any("teacher" in path for path in state)


def test_vit_learns_from_a_workdir_softly(student, tmp_path):
    check_student(student, alpha=0.7)
    (path,), _ = write_digits(tmp_path, [0])
    assert predict([str(path), "--workdir", str(student)]) == 0


@pytest.mark.slow
def test_t2t_learns_from_a_distilled_workdir_hard(student, tmp_path, capsys):
    base = ("--model=t2t", "--model-args", *TINY[TINY.index("--model-args") + 1 :])
    options = (f"--distill.teacher={student}", "--distill.hard", "--batch-size=32", "--log-steps=1", "--steps=3")
    assert run(tmp_path, *options, base=base) == 0
    assert f"teacher      {student}, hard" in capsys.readouterr().out
    check_student(tmp_path, alpha=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [("8", "8"), pytest.param(("own",), marks=pytest.mark.slow)])
def test_a_teacher_sees_images_of_its_own_size_and_normalisation(teacher, image_size, tmp_path, monkeypatch):
    """The student sees larger images, normalised otherwise, and learns the teacher's logits for the teacher's own."""
    seen = {}
    apply = Teacher.apply
    monkeypatch.setattr(Teacher, "apply", lambda self, *args: apply(seen.setdefault("teacher", self), *args))
    size = ("--data.image-size", "16", "16", "--data.mean", "0.5", "--data.std", "0.25")
    options = (
        f"--teacher={teacher}",
        "--distill.image-size",
        *image_size,
        "--batch-size=32",
        "--log-steps=1",
        "--steps=3",
    )
    assert run(tmp_path, *options, *size) == 0
    check_student(tmp_path, alpha=0.5)
    info = load_run(teacher).info
    assert (seen["teacher"].mean, seen["teacher"].std) == (info.mean, info.std)
    assert (seen["teacher"].student_mean, seen["teacher"].image_size) == ((0.5,), (8, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--augment.flip", "--distill.views=2"), pytest.param(("--augment.crop-padding=0",), marks=pytest.mark.slow)],
)
def test_cached_logits_are_the_teachers(teacher, options, tmp_path):
    """A run is the same whether the teacher's logits are cached or computed in the step."""
    views = () if "--distill.views=2" in options else ("--distill.views=1",)
    options = (f"--teacher={teacher}", "--batch-size=600", "--log-steps=1", "--steps=5", *options)
    assert run(tmp_path / "kept", *options, "--cache-teacher") == 0
    assert run(tmp_path / "computed", *options, *views) == 0
    kept, computed = (stored(tmp_path / name, 5)[0] for name in ("kept", "computed"))
    for path, value in kept.items():
        np.testing.assert_allclose(value, computed[path], rtol=1e-4, atol=1e-5, err_msg=path)
    table = np.load(tmp_path / "kept" / "teacher_logits.npy")
    assert len(table) == (1 if views else 2) * 1437
    assert np.unique(table, axis=0).shape[0] > 0.9 * len(table)
    assert not list((tmp_path / "kept").glob("*.part"))


@pytest.mark.slow
def test_efficient_learns_from_a_workdir(teacher, tmp_path):
    options = (f"--distill.teacher={teacher}", "--batch-size=32", "--log-steps=1", "--steps=3")
    assert run(tmp_path, *options, base=("--model=efficient",)) == 0
    check_student(tmp_path, alpha=0.5)


@pytest.fixture(scope="module")
def weights(teacher, tmp_path_factory):
    """The teacher's parameters as a torch file."""
    from safetensors.numpy import save_file

    from vit_jax.convert import to_torch

    loaded = load_run(teacher)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(to_torch(loaded.objective.model, {"params": jax.device_get(loaded.params)}), path)
    return path


@pytest.mark.slow
def test_teacher_from_torch_weights_equals_the_one_in_the_workdir(student, weights, tmp_path):
    arguments = ("patch_size=(1, 8)", *TINY[TINY.index("--model-args") + 1 :])
    named = ("--distill.teacher=vit/tiny", f"--distill.weights={weights}", "--distill.args", *arguments)
    assert run(tmp_path, *SOFT, *named) == 0
    assert_same(stored(tmp_path, 3)[0], stored(student, 3)[0])


def test_init_starts_at_the_weights(teacher, weights, tmp_path, monkeypatch):
    states = {}
    monkeypatch.setattr(checkpoint, "save", recording(states))
    # A learning rate that rises from zero leaves the first step's parameters where they were.
    options = ("--steps=1", "--optim.warmup-epochs=1", "--optim.ema=0.5")
    assert run(tmp_path, *options, f"--init={weights}") == 0
    started = flat(states[1])
    for path, value in flat(load_run(teacher).params).items():
        np.testing.assert_array_equal(started[f".params{path}"], value)
        np.testing.assert_allclose(started[f".ema{path}"], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--distill.teacher={teacher}", "--data.image-size", "16", "8"), r"\(8, 8, 1\).*\(16, 8, 1\)"),
        (
            ("--distill.teacher={teacher}", "--data=folder:{folder}", "--data.image-size", "8", "8"),
            "10 classes, and the data has 2, .*only the data has a, b",
        ),
        (("--distill.teacher={folder}",), "expected a workdir with checkpoints"),
        (("--distill.teacher=vit/tiny", "--distill.weights={weights}"), "--distill"),
        (("--distill.teacher=vti/tiny", "--distill.weights={weights}"), "did you mean vit"),
        (
            ("--distill.teacher=vit/tiny", "--distill.weights=/nowhere.pth", "--distill.args", "patch_size=2"),
            "/nowhere",
        ),
        (("patch_size=2", "--model=cait", "--distill.teacher={teacher}"), "student=CaiT: expected .* vit, "),
        (("dim=8", "--init={weights}"), "--init.*does not fit"),
        (("--init=/nowhere.pth",), "--init.*/nowhere.pth"),
        (("--teacher={teacher}", "--cache-teacher", "--augment.flip"), "set --distill.views"),
        (("--teacher={teacher}", "--distill.views=2", "--augment.mixup=0.2"), "--augment.mixup"),
        (("--cache-teacher",), "without --distill.teacher"),
    ],
)
def test_teachers_and_weights_that_do_not_fit(options, named, teacher, weights, tmp_path, capsys):
    for i in range(4):
        for split in ("train", "val"):
            path = tmp_path / "data" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), i).save(path)
    options = [o.format(teacher=teacher, weights=weights, folder=tmp_path / "data") for o in options]
    assert run(tmp_path / "run", *options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert re.search(named, err.replace("\n", " ")), err
    assert not (tmp_path / "run").exists()
