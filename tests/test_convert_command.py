"""`python -m train.convert`: torch's weights to Orbax and back, for models, teachers and runs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.runs import untrained
from tests.test_models import variables_of
from train.convert import main as convert
from train.run.stored import load_run
from vit_jax import create_model
from vit_jax.convert import from_torch, to_torch

VIT = ("--model=vit/tiny", "--model-args", "depth=1", "dim=16", "num_classes=3", "image_size=8")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of a ViT with torch's names."""
    model = create_model("vit/tiny", depth=1, dim=16, num_classes=3, image_size=8)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(to_torch(model, variables_of(model, jnp.zeros((1, 8, 8, 3)), {})), path)
    return path


def test_there_and_back_again(weights, tmp_path, capsys):
    assert convert([str(weights), "--out", str(tmp_path / "flax"), *VIT]) == 0
    assert f"numbers written to {tmp_path / 'flax'}" in capsys.readouterr().out
    assert convert([str(tmp_path / "flax"), "--out", str(tmp_path / "back.safetensors"), *VIT]) == 0
    first, second = load_file(weights), load_file(tmp_path / "back.safetensors")
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])


def test_a_prefix_is_named_and_picks_the_weights(weights, tmp_path, capsys):
    wrapped = tmp_path / "wrapped.safetensors"
    save_file({f"module.{key}": value for key, value in load_file(weights).items()}, wrapped)
    out = tmp_path / "out.safetensors"
    assert convert([str(wrapped), "--out", str(out), *VIT]) == 2
    expected = f"error: {wrapped} holds the weights of ViT under 'module.': pass --prefix=module.\n"
    assert capsys.readouterr().err == expected
    assert convert([str(wrapped), "--out", str(out), "--prefix=module.", *VIT]) == 0
    assert load_file(out).keys() == load_file(weights).keys()


def test_home_is_spelled_out(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(weights.read_bytes())
    assert convert(["~/w.safetensors", "--out", "~/out.SafeTensors", *VIT]) == 0
    assert (tmp_path / "out.SafeTensors").is_file()
    assert not (tmp_path / "~").exists()


def test_a_teacher(tmp_path):
    teacher = create_model("resnet18", num_classes=2)
    variables = variables_of(teacher, jnp.zeros((1, 32, 32, 3)), {})
    save_file(to_torch(teacher, variables), tmp_path / "resnet.safetensors")
    network = ("--model=resnet18", "--model-args", "num_classes=2")
    assert convert([str(tmp_path / "resnet.safetensors"), "--out", str(tmp_path / "flax"), *network]) == 0
    assert convert([str(tmp_path / "flax"), "--out", str(tmp_path / "back.safetensors"), *network]) == 0
    again = from_torch(teacher, tmp_path / "back.safetensors", jnp.zeros((1, 32, 32, 3)))
    jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_a_run_gives_its_model_and_a_distilled_run_its_student(tmp_path):
    untrained(tmp_path / "teacher")
    untrained(tmp_path / "student", f"--teacher={tmp_path / 'teacher'}")
    for name in ("teacher", "student"):
        assert convert([str(tmp_path / name), "--out", str(tmp_path / f"{name}.safetensors")]) == 0
    loaded = load_run(tmp_path / "student")
    expected = to_torch(loaded.objective.student, {"params": jax.device_get(loaded.params["student"])})
    for key, value in load_file(tmp_path / "student.safetensors").items():
        np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["{weights}", "--out", "{weights}"], "already exists: expected a new path"),
        (["{weights}", "--out", "new"], "--model is missing"),
        (["{weights}", "--out", "gs://bucket/new", *VIT], "^error: --out gs://bucket/new: expected a local path"),
        (["{weights}", "--out", "{weights}/in/a/file.safetensors", *VIT], "cannot be written"),
        (
            ["{weights}", "--out", "new.pth", *VIT],
            r"--out new.pth: the format .pth is not supported: expected .* .safetensors",
        ),
        (
            ["{weights}", "--out", "new.NPZ", *VIT],
            r"--out new.NPZ: the format .NPZ is not supported: expected .* .safetensors",
        ),
        (["{weights}", "--out", "new", "--prefix=ema", *VIT], "no names that begin with 'ema'"),
        ([".", "--out", "new", "--prefix=ema", *VIT], "--prefix ema applies to torch files, but . is a folder"),
        ([".", "--out", "new", *VIT], "^error: . cannot be read: [^\n]*$"),
        (["{weights}", "--out", "new", "--model=vti"], "did you mean vit"),
        (["{weights}", "--out", "new", "--model=vit/tiny", "--model-args", "num_classes=5"], "does not fit ViT"),
        (
            ["{weights}", "--out", "new", *VIT, "--input-shape", "100000", "100000", "1"],
            "--input-shape .* must hold from 1",
        ),
        (["{weights}", "--out", "new", *VIT, "--input-shape", "1000000000", "8", "1"], "each a whole number from 1 to"),
        (["{weights}", "--out", "new", *VIT, "--input-shape", "-8", "-8", "1"], r"--input-shape is \(-8, -8, 1\); it"),
        (["{weights}", "--out", "new", "--model=vit", "--model-args", "depth=100000"], "expected at most 256"),
        (
            ["IMAGENET1K_V3", "--out", "new", "--model=resnet50"],
            "IMAGENET1K_V3 does not exist: .* or one of IMAGENET1K_V1",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, named, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert convert([argument.format(weights=weights) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert re.search(named, message), message
    assert message.count("\n") <= 20
    assert not list(tmp_path.iterdir())
