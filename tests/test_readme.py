"""The commands and the code of README.md run as written."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import train.convert
import train.main
import train.plan
import train.predict
import train.probe
from vit_jax import create_model
from vit_jax.convert import to_torch

README = (Path(__file__).parents[1] / "README.md").read_text()
MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(prefix: str) -> list[list[str]]:
    lines = "\n".join(blocks("console")).splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith(f"$ {prefix}")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the files that the commands name."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, name in [(s, n) for s in ("train", "test") for n in ("cat", "dog")]:
        path = Path("PATH") / split / name
        path.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path / f"{i}.png")
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save("IMAGE.png")
    images = jax.numpy.zeros((1, 32, 32, 3))
    teacher, student = create_model("vit/ti16", image_size=32, num_classes=2), create_model("t2t/tiny", num_classes=10)
    for model, file in ((teacher, "vit.safetensors"), (student, "t2t.safetensors")):
        save_file(to_torch(model, jax.jit(model.init)(jax.random.key(0), images)), file)


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks("python"):
        exec(block, namespace)
    assert namespace["logits"].shape == (2, 10)
    assert "'cait'" in capsys.readouterr().out


@pytest.mark.slow
def test_command_lines_run(folder, capsys):
    """Two steps each, in their order, since later ones read what earlier ones wrote."""
    ran = 0
    for _python, _m, module, *argv in commands("python -m train"):
        if "--tpu" in argv:
            assert train.main.parse(argv).tpu  # what comes of it here is in test_cli.py: it needs a fresh process
        elif "--help" in argv:
            with pytest.raises(SystemExit, match="0"):
                train.main.main(argv)
        elif module == "train.plan":  # for TPUs, whose compiler is not here: tests/test_plan.py compiles for CPUs
            assert train.plan.main([*argv, "--topology=v9:1"]) == 2
            assert "--topology v9:1: expected cpu:N, or" in capsys.readouterr().err
        elif module == "train.probe":
            assert train.probe.main(argv) == 0
            assert capsys.readouterr().out.count("%") == 2
        elif module == "train.convert":
            assert train.convert.main(argv) == 0
            assert "numbers written to" in capsys.readouterr().out
        elif module == "train.predict":
            assert train.predict.main(argv) == 0
            assert capsys.readouterr().out.count("%") == 5
        else:
            assert train.main.main([*argv, "--steps=2"]) == 0
            assert "done: loss" in capsys.readouterr().out
        ran += 1
    assert ran == 15


def test_commands_come_after_the_environment_that_they_need():
    """`make train` installs into .venv; what stands below is for its interpreter."""
    lines = [" ".join(command) for command in commands("")]
    assert lines[:2] == ["make train", "source .venv/bin/activate"]
    assert "\nBIN := .venv/bin\n" in MAKEFILE
    assert {line.split()[0] for line in lines[2:]} == {"make", "python3", ".venv/bin/python", "python"}
    assert len(commands("python -m train")) == 15


def test_make_targets_exist():
    for _make, target, *_ in commands("make"):
        assert f"\n{target}:" in MAKEFILE
