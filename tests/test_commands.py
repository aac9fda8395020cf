"""All commands: `vit-jax` starts each, errors are one line, and --help is quick."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import train.cli
import train.convert
import train.main
import train.predict
import vit_jax
from train.commandline.options import MODULES, read_options, split
from train.listing import SHELLS
from train.recipes import RECIPES

ROOT = Path(__file__).parents[1]


def test_the_installed_command_starts_the_same_commands(capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"vit-jax": "train.cli:main"}
    assert train.cli.main(["--help"]) == 0
    usage = capsys.readouterr().out
    for command, module in MODULES.items():
        assert command in usage
        assert importlib.util.find_spec(f"train.{module}")
    assert train.cli.main(["train", "--lr=3"]) == 2
    assert "did you mean --optim.lr?" in capsys.readouterr().err
    for argv, said in (([], "usage: vit-jax {train,"), (["trian"], "error: unknown command 'trian'; usage: ")):
        assert train.cli.main(argv) == 2
        assert capsys.readouterr().err.startswith(said)


def test_what_there_is_is_listed(capsys, tmp_path, monkeypatch):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for option, expected in (
        ("--version", [f"vit-jax {vit_jax.__version__}"]),
        ("--list-models", ["tiny ti16 s16", "resnet50", *vit_jax.list_models()]),
        ("--list-recipes", [recipe.command for recipe in RECIPES.values()]),
        ("--list-data", ["digits ", "folder:PATH ", f"in {tmp_path}: mnist"]),
    ):
        for main in (train.cli.main, train.main.main):
            assert main([option]) == 0
            printed = capsys.readouterr().out
            assert [text for text in expected if text not in printed] == []
            assert main([option, "more"]) == 2
            assert capsys.readouterr().err == f"error: {option} takes no further arguments; it was given more\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_every_option_is_completed(shell, capsys):
    assert train.cli.main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    assert [name for name in (*MODULES, "--optim.lr", "--attention", "--topology") if name not in script] == []
    for argv in ([], ["fish"], ["bash", "zsh"]):
        assert train.cli.main(["--completion", *argv]) == 2
        assert capsys.readouterr().err == "error: --completion needs one of bash, zsh\n"


MISTAKES = {  # of each command; --workdir=w and the like make the rest of the line complete
    "train": [
        ("--modle=vit", "unknown option --modle; did you mean --model"),
        ("--steps", "--steps needs a value: a whole number from 1 to 2,147,483,647"),
        ("--steps=abc", "--steps is abc; it must be a whole number from 1 to 2,147,483,647"),
        ("--steps 3 4", "--steps is 3 4; it must be a whole number from 1 to 2,147,483,647"),
        ("--workdir=", "--workdir is ''; it must be text that is not empty"),
        ("--tpu yes", "--tpu takes no value; it was given yes"),
        ("stray", "unexpected argument stray: options start with --"),
        ("-- --steps=3", "unexpected argument --steps=3: options start with --"),
    ],
    "plan": [
        ("--clases=3", "unknown option --clases; did you mean --classes?"),
        ("--classes", "--classes needs a value: a whole number from 1 to 1,000,000"),
        ("--classes=0", "--classes is 0; it must be a whole number from 1 to 1,000,000"),
        ("--classes 3 4", "--classes is 3 4; it must be a whole number from 1 to 1,000,000"),
        ("--topology=", "--topology is ''; it must be text that is not empty"),
        ("--sweep yes", "--sweep takes no value; it was given yes"),
        ("--steps=abc", "--steps is abc; it must be a whole number from 1 to 2,147,483,647"),
        ("-- stray", "unexpected argument stray: options start with --"),
    ],
    "prepare": [
        ("", "NAME is missing; it must be text that is not empty"),
        ("mnist --dirs=d", "unknown option --dirs; did you mean --dir?"),
        ("mnist cifar10", "unexpected argument cifar10: options start with --"),
        ("../mnist", "unknown data 'tfds:../mnist': expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.0.0"),
    ],
    "probe": [
        ("", "--workdir is missing; it must be text that is not empty"),
        ("--workdri=w", "unknown option --workdri; did you mean --workdir?"),
        ("--workdir", "--workdir needs a value: text that is not empty"),
        ("--workdir=", "--workdir is ''; it must be text that is not empty"),
        ("--workdir v w", "--workdir is v w; it must be text that is not empty"),
        ("--workdir=w --neighbours=0", "--neighbours is 0; it must be a whole number from 1 to 1,000,000"),
        ("--workdir=w --seed=-1", "--seed is -1; it must be a whole number at least 0 and below 4,294,967,296"),
        ("--workdir=w -- stray", "unexpected argument stray: options start with --"),
    ],
    "predict": [
        ("", "IMAGES is missing; it must be one or more values, each a path"),
        ("--workdir=w", "IMAGES is missing; it must be one or more values, each a path"),
        ("--workdir=w --", "IMAGES is missing; it must be one or more values, each a path"),
        ("a.png", "--workdir is missing; it must be text that is not empty"),
        ("a.png --workdir=", "--workdir is ''; it must be text that is not empty"),
        ("a.png --workdir=w --attention=", "--attention is ''; it must be a path"),
        ("a.png --workdir=w --tops=3", "unknown option --tops; did you mean --top?"),
        ("a.png --workdir=w --images=b.png", "unknown option --images; --help lists all options"),
        ("a.png --workdir=w --top", "--top needs a value: a whole number from 1 to 1,000,000"),
        ("a.png --workdir=w --top=0", "--top is 0; it must be a whole number from 1 to 1,000,000"),
        ("a.png --workdir=w --top=many b.png", "--top is many; it must be a whole number from 1 to 1,000,000"),
    ],
    "convert": [
        ("", "SOURCE is missing; it must be text that is not empty"),
        ("--out=o", "SOURCE is missing; it must be text that is not empty"),
        ("a.pth", "--out is missing; it must be text that is not empty"),
        ("a.pth --out=", "--out is ''; it must be text that is not empty"),
        ("a.pth b.pth --out=o", "unexpected argument b.pth: options start with --"),
        ("a.pth -out o", "unexpected argument -out: options start with --"),
        ("a.pth --out o -- --model=vit", "unexpected argument --model=vit: options start with --"),
        ("a.pth --out=o --modle=vit", "unknown option --modle; did you mean --model"),
        ("a.pth --out=o --model", "--model needs a value: text that is not empty"),
        ("a.pth --out=o --model-args", "--model-args needs a value: one or more values, each text that is not empty"),
        ("a.pth --out=o --input-shape=abc", "--input-shape is abc; it must be one or more values, each a whole number"),
        ("a.pth --out=o --input-shape 8 0", "--input-shape is (8, 0); it must be one or more values, each a whole"),
    ],
}


@pytest.mark.parametrize(
    ("command", "line", "expected"),
    [(command, line, expected) for command, rows in MISTAKES.items() for line, expected in rows],
)
def test_mistakes_of_every_command_are_one_line(command, line, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.cli.main([command, *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {expected}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_positional_arguments_stand_anywhere():
    read = lambda kind, line: read_options(kind, split(line.split()), "predict", "")
    options = read(train.predict.Options, "a --workdir w b --top=3 -c --attention o -- --d --top=4")
    assert list(map(str, options.images)) == ["a", "b", "-c", "--d", "--top=4"]
    assert (options.workdir, options.top, str(options.attention)) == ("w", 3, "o")
    options = read(train.convert.Options, "--out o a.pth --input-shape 8 8 --model-args b=1 c=2")
    assert (options.source, str(options.out)) == ("a.pth", "o")
    assert (options.input_shape, options.model_args) == ((8, 8), ("b=1", "c=2"))
    assert read(train.convert.Options, "--out o --model-args b=1 -- --a.pth").source == "./--a.pth"


def test_help_needs_nothing_that_takes_long_to_import(tmp_path):
    """Like the installed command, in a folder with a file `train.py` that must not be imported."""
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train.py')")
    heavy = ("jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "matplotlib", "sklearn", "numpy")
    script = f"""
import contextlib, sys
sys.argv[0] = "/somewhere/bin/vit-jax"
from train.cli import main
for command in {list(MODULES)}:
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    print("imported", [name for name in {heavy} if name in sys.modules])
"""
    command_line = [sys.executable, "-P", "-c", script]  # -P: the current folder is not searched, as in a script
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command_line, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    usages = [line.partition(" [-h]")[0] for line in lines if line.startswith("usage: ")]
    assert usages == [f"usage: vit-jax {command}" for command in MODULES]
    assert [line for line in lines if line.startswith("imported")] == ["imported []"] * len(MODULES)
