"""Students of trained networks, and runs that start at given weights."""

import re

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.runs import TINY, assert_same, flat, recording, records, stored, untrained, write_digits
from tests.runs import train as run
from train.distill.teacher import load_teacher
from train.main import parse
from train.predict import main as predict
from train.run.stored import load_run
from vit_jax.convert import to_torch
from vit_jax.objectives.distill import Teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The workdir of a network whose weights no run starts with by itself."""
    workdir = tmp_path_factory.mktemp("teacher")
    untrained(workdir, "--seed=1")
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
def test_a_distilled_teacher_sees_images_of_its_own_size_and_normalisation(student, tmp_path, monkeypatch, capsys):
    """The next student sees larger images, normalised otherwise, and learns which class the teacher sees in its own."""
    seen = {}
    apply = Teacher.apply
    monkeypatch.setattr(Teacher, "apply", lambda self, *args: apply(seen.setdefault("teacher", self), *args))
    size = ("--data.image-size", "16", "16", "--data.mean", "0.5", "--data.std", "0.25")
    options = (f"--teacher={student}", "--distill.hard", "--distill.image-size=8", "--log-steps=1", "--steps=3", *size)
    assert run(tmp_path, *options) == 0
    assert f"teacher      {student}, hard" in capsys.readouterr().out
    check_student(tmp_path, alpha=0.5)
    info = load_run(student).info
    assert (seen["teacher"].mean, seen["teacher"].std) == (info.mean, info.std)
    assert (seen["teacher"].student_mean, seen["teacher"].image_size) == ((0.5,), (8, 8))
    own = parse([*options, "--distill.image-size=own"])
    assert load_teacher(own, load_run(tmp_path).info)[0] == seen["teacher"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--augment.flip", "--distill.views=2"),
        pytest.param(("--augment.crop-padding=0",), marks=pytest.mark.exhaustive),
    ],
)
def test_cached_logits_are_the_teachers(teacher, options, tmp_path):
    """A run is the same whether the teacher's logits are cached or computed in the step, and wherever images are."""
    views = () if "--distill.views=2" in options else ("--distill.views=1",)
    options = (f"--teacher={teacher}", "--batch-size=600", "--log-steps=1", "--steps=5", *options)
    assert run(tmp_path / "kept", *options, "--cache-teacher", "--data.placement=devices") == 0
    assert run(tmp_path / "computed", *options, *views) == 0
    kept, computed = (stored(tmp_path / name, 5)[0] for name in ("kept", "computed"))
    for path, value in kept.items():
        np.testing.assert_allclose(value, computed[path], rtol=1e-4, atol=1e-5, err_msg=path)
    table = np.load(tmp_path / "kept" / "teacher_logits.npy")
    assert len(table) == (1 if views else 2) * 1437
    assert np.unique(table, axis=0).shape[0] > 0.9 * len(table)
    assert not list((tmp_path / "kept").glob("*.part"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", ["t2t", "efficient"])
def test_other_models_learn_from_a_workdir(model, teacher, tmp_path):
    options = (f"--distill.teacher={teacher}", "--batch-size=32", "--log-steps=1", "--steps=3")
    assert run(tmp_path, *options, base=(f"--model={model}",)) == 0
    check_student(tmp_path, alpha=0.5)


@pytest.fixture(scope="module")
def weights(teacher, tmp_path_factory):
    """The teacher's parameters as a torch file."""
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
    states = recording(monkeypatch)
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
        (("--teacher={teacher}", "--distill.views=2", "--augment.repeats=3"), "repeats is 3 with --distill.views 2"),
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
