"""Students of the features of published weights: a run of the trainer, and what it says and refuses."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.objectives.starts import started
from tests.runs import TINY, error, flat, records, stored, write_digits
from tests.runs import train as run
from tests.test_models import filled
from train.attention_picture import attention_panels
from train.build import DataInfo, build_model, build_objective
from train.config import Config, Distill
from train.distill.teacher import load_teacher, with_feature_dim
from train.errors import UserError
from train.initial import load_initial
from train.predict import main as predict
from train.run.stored import Run, load_run, model_variables
from train.step import TrainState
from train.trunk import trunk_of
from vit_jax import create_model, save_pretrained
from vit_jax.convert import to_torch
from vit_jax.objectives.distill import Teacher
from vit_jax.pretrained.preprocessing import Preprocessing

SIZES = dict(image_size=8, patch_size=4, dim=12, depth=1, heads=2, mlp_dim=16)
OPTIONS = ("--distill.features=tokens", "--distill.feature-weight=2", "--distill.alpha=0.3")
INFO = DataInfo(tuple("0123456789"), (8, 8, 1), (0.5,), (0.25,))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder with random weights as timm writes them, for ten classes and coloured images of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("published")
    model = create_model("timm/vit_tiny_patch16_224", num_classes=10, **SIZES)
    variables = jax.jit(model.init)(jax.random.key(1), np.zeros((1, 8, 8, 3), np.float32))
    save_pretrained(folder, model, variables, Preprocessing(8, interpolation="lanczos", mean=(0.1, 0.2, 0.3)))
    return folder


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """The workdir of a ViT that learned from the teacher's features and logits."""
    workdir = tmp_path_factory.mktemp("student")
    assert run(workdir, f"--teacher={teacher}", *OPTIONS, "--log-steps=1", "--steps=8") == 0
    return workdir


@pytest.mark.slow
def test_a_student_learns_from_features_and_logits(student, tmp_path):
    lines = records(student, "train")
    for record in lines:
        expected = 0.7 * record["label_loss"] + 0.3 * record["teacher_loss"] + 2 * record["feature_loss"]
        assert record["loss"] == pytest.approx(expected, rel=1e-5)
    assert lines[-1]["feature_loss"] < lines[0]["feature_loss"]
    state, _ = stored(student, 8)
    assert state[".params['projection']['kernel']"].shape == (16, 12)
    assert not any("teacher" in path for path in state)

    loaded = load_run(student)
    assert "projection" not in trunk_of(loaded).variables["params"]
    model, variables = model_variables(loaded)
    assert (model, variables["params"].keys()) == (loaded.objective.student, loaded.params["student"].keys())
    (path,), _ = write_digits(tmp_path, [0])
    assert predict([str(path), "--workdir", str(student)]) == 0


@pytest.mark.slow
def test_a_run_knows_the_width_of_the_features_when_it_continues(student, teacher, capsys):
    assert load_run(student).config.distill.feature_dim == 12
    assert run(student, f"--teacher={teacher}", *OPTIONS, "--log-steps=1", "--steps=8") == 0
    assert f"teacher      {teacher}, soft and features (tokens, weight 2)" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["vit", "cct"])
def test_without_alpha_any_model_learns_from_features_alone(model, teacher):
    config = Config(model=model, distill=Distill(teacher=str(teacher), features="pooled", image_size="own"))
    info = INFO._replace(class_names=("a", "b"), image_shape=(16, 16, 3), mean=(0.5,) * 3, std=(0.25,) * 3)
    found, frozen = load_teacher(config, info)
    assert (found.network.num_classes, found.image_size, found.interpolation) == (0, (8, 8), "lanczos3")
    assert not any("classifier" in path for path in flat(frozen))
    objective = build_objective(with_feature_dim(config, found, info), info, found)
    params, _ = jax.eval_shape(objective.init, jax.random.key(0), info.images)
    assert params.keys() == {"student", "projection"}
    assert params["projection"]["kernel"].shape[1] == 12


def test_a_student_starts_at_weights_of_its_own(tmp_path):
    """A torch file has the names of the student, not those of a student with a token or a projection."""
    config = Config(model="vit", model_args=("depth=1",), init=str(tmp_path / "vit.safetensors"))
    student = build_model(config.model, config.model_args, INFO._replace(class_names=("a", "b")))
    given = filled(jax.eval_shape(student.init, jax.random.key(0), INFO.images))
    save_file({name: np.array(leaf) for name, leaf in to_torch(student, given).items()}, config.init)
    config = dataclasses.replace(config, distill=Distill(teacher="t", features="pooled", feature_dim=3, alpha=0.5))
    objective = build_objective(config, INFO)
    params, extras = jax.eval_shape(objective.init, jax.random.key(0), INFO.images)
    initial = load_initial(config, objective, INFO, TrainState(0, params, extras, None, None))
    assert initial.path == ("student",)
    kept = {name: leaf for name, leaf in given["params"].items() if name != "mlp_head"}
    loaded = {name: initial.variables["params"][name] for name in kept}
    jax.tree.map(np.testing.assert_array_equal, loaded, kept)
    assert {name for name in initial.report.random if not name.startswith("student/")} == {
        *("distill_mlp/bias", "distill_mlp/kernel", "distillation_token", "projection/bias", "projection/kernel")
    }


def test_attention_is_drawn_without_a_distillation_token():
    config = Config(model="vit", model_args=TINY[TINY.index("--model-args") + 1 :])
    config = dataclasses.replace(config, distill=Distill(teacher="t", features="pooled", feature_dim=3))
    objective = build_objective(config, INFO)
    params, extras = started(objective, INFO.images)
    panels = attention_panels(Run(config, INFO, objective, params, extras), np.zeros((2, 8, 8, 1), np.uint8))
    assert panels.shares.shape == (2, 3, 2, 2)
    assert panels.reader == "the class token"


def test_the_teacher_sees_grey_images_as_coloured_ones(teacher):
    found, frozen = load_teacher(Config(distill=Distill(teacher=str(teacher))), INFO)
    pixels = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    coloured = (pixels - np.array([0.1, 0.2, 0.3], np.float32)) / np.array(found.std, np.float32)
    images = (pixels - 0.5) / 0.25
    logits = jax.jit(found.apply)(frozen["teacher"], jax.device_put(images))
    np.testing.assert_allclose(logits, jax.jit(found.network.apply)(frozen["teacher"], coloured), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--distill.features=tokens",), "--distill.features is set without --distill.teacher"),
        (("--teacher={}", "--distill.feature-weight=2"), "--distill.feature-weight is set without --distill.features"),
        (
            ("--teacher={}", "--distill.features=tokens", "--cache-teacher"),
            "--distill.cache keeps logits; it cannot be used with --distill.features",
        ),
        (
            ("--teacher={}", "--distill.features=tokens", "--distill.hard"),
            "--distill.hard is for logits, which --distill.features leaves out: set --distill.alpha",
        ),
        (
            ("--teacher={}", "--distill.features=tokens", "--objective=distill"),
            "--objective distill does not use --distill.features",
        ),
        (
            ("--teacher={}", "--distill.features=tokens", "--distill.feature-dim=5"),
            "--distill.feature-dim is 5; the teacher's features have 12",
        ),
        (
            ("--teacher={}", "--distill.features=tokens", "cls_depth=1", "--model=cait"),
            "--objective feature_distill: CaiT returns features of shape",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, message, teacher, tmp_path, capsys):
    options = [option.format(teacher) for option in options]
    base = (*TINY, options.pop(2)) if "--model=cait" in options else TINY
    assert message in error(capsys, tmp_path, *options, base=base)


def test_a_teacher_without_a_map_is_named():
    config = Config(distill=Distill(teacher="runs/cait", features="tokens"))
    teacher = Teacher(create_model("cait/tiny", num_classes=2, image_size=8, patch_size=4, channels=1))
    with pytest.raises(UserError, match=r"--distill.teacher runs/cait: CaiT returns .* Try --distill\.features=pooled"):
        with_feature_dim(config, teacher, INFO)
