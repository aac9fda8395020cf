"""The commands and the code of README.md and of docs/ run as written."""

import re
import shlex
import tomllib
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

import train.cli
import train.compare
import train.convert
import train.evaluate
import train.export
import train.main
import train.plan
import train.predict
import train.probe
import train.push
import train.report
from docs import make_deviations
from train.commandline.options import read_options, split
from train.data import load_dataset
from train.sharding import make_mesh
from vit_jax.registry import MODELS, list_presets

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]

# In the order in which they run, as some read what earlier ones wrote.
PAGES = (
    "README.md",
    "docs/getting-started.md",
    "docs/own-images.md",
    "docs/images.md",
    "docs/evaluation.md",
    "docs/targets.md",
    "docs/recipes.md",
    "docs/runs.md",
    "docs/published-weights.md",
    "docs/export.md",
    "docs/fine-tuning.md",
    "docs/distillation.md",
    "docs/pretraining.md",
    "docs/weights.md",
    "docs/architecture.md",
    "docs/own-loop.md",
    "docs/nnx.md",
    "docs/copy-a-model.md",
    "docs/tpu.md",
    "docs/faults.md",
)

# Commands with one of these in a word are checked but not run: large models, many processes, files from elsewhere,
# and another model with options that other commands run.
NOT_RUN = (
    "/s16",
    "/b16",
    "--tpu",
    "--coordinator",
    "checkpoint.pth",
    "augreg",
    "runs/photos-small",
    "runs/photos-seed-0",
    "resnet18",
    "--recipe=cifar10",
    "--init-from=runs/photos",
    "--workdir=runs/deeper-pit",
    "--workdir=runs/longer",
    "--sweep",
    "--track",
    "push",
    "--data=table:",  # test_the_data_of_the_page_is_read
    "--data=wds:",
    "--data=hf:",
    "--data.target",
    "--class-weights",
    "--data.sampler",
)

COMMANDS = ("predict", "evaluate", "report", "compare", "probe", "convert", "export", "push")
OTHERS = {name: getattr(train, name) for name in COMMANDS}


def blocks(page: str) -> list[tuple[str, str]]:
    """The code blocks of a page, as (language, code)."""
    return re.findall(r"^```(console|python)\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The command lines of a console block, without their output."""
    return [shlex.split(line[2:], comments=True) for line in text.splitlines() if line.startswith("$ ")]


def check_command(words: list[str]) -> None:
    """Assert that the command's options, extras, make targets and files exist."""
    match words:
        case ["make", *targets]:
            assert all(f"\n{target}:" in MAKEFILE for target in targets)
        case ["vit-jax", *argv] | ["python" | ".venv/bin/python", "-m", "train.main", *argv]:
            check_trainer_command(argv if words[0] == "vit-jax" else ["train", *argv])
        case ["python", file, *_] if file.endswith(".py"):
            assert (ROOT / file).exists()
        case ["pip", "install", what] | [".venv/bin/python", "-m", "pip", "install", "--editable", what]:
            extras = re.fullmatch(rf"(?:vit-jax|\.)(?:\[([\w,]+)\])?(?: @ git\+{REPOSITORY})?", what)[1]
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
        case ["git", "clone", address]:
            assert address == REPOSITORY
        case _:
            assert words in (
                ["cd", "vit-jax"],
                ["source", ".venv/bin/activate"],
                ["eval", "$(vit-jax --completion bash)"],  # tests/test_commands.py
                ["python3", "-m", "venv", ".venv"],
                ["sudo", "apt", "install", "git", "make", "python3-venv"],
            )


def check_trainer_command(argv: list[str]) -> None:
    command, *options = argv
    if command == "plan":  # for TPUs, whose compiler is not here: tests/test_plan.py compiles for CPUs
        assert train.plan.main([*options, "--topology=v9:1"]) == 2
    elif command != "train":
        read_options(OTHERS[command].Options, split(options), command, "")
    elif "--help" not in options:
        with mock.patch("train.main.run", return_value=0), mock.patch("train.sweep.sweep", return_value=0):
            assert train.main.main(options) == 0


def run_command(words: list[str], done: list[list[str]], capsys) -> None:
    """Two steps of one block where it trains; nothing if it is in `done`, where the others go."""
    if words == ["make", "train"]:
        words = ["vit-jax", "train"]
    if words in done:
        return
    done.append(words)
    if words[0] != "vit-jax" or words[1] == "plan" or any(part in word for part in NOT_RUN for word in words):
        return
    capsys.readouterr()
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            train.cli.main(words[1:])
        return
    quick = ["--steps=2", "--no-report", *(["--model-args", "depth=1"] if "--model-args" not in words else [])]
    assert train.cli.main([*words[1:], *(quick if words[1] == "train" else [])]) == 0, words
    table = "images predicted" if any("--out" in word for word in words) else "%"
    printed = {
        "train": "done: loss",
        "predict": table,
        "evaluate": "Forward pass alone",
        "report": "report.html",
        "probe": "linear ",
        "convert": "numbers written to",
        "export": "exported: README.md",
    }
    assert printed[words[1]] in capsys.readouterr().out


@pytest.fixture
def quick(monkeypatch):
    """One device, as most readers have, and no second of measuring after the first few batches."""
    one = lambda shape=None: make_mesh(shape, jax.devices()[:1])
    for module in ("setup", "evaluation.evaluation", "evaluation.report"):
        monkeypatch.setattr(f"train.{module}.make_mesh", one)
    monkeypatch.setattr("train.evaluation.predictions.SECONDS", 0.0)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working directory with the images that the commands name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rng = np.random.default_rng(0)
    for split_name, name in [(s, n) for s in ("train", "val") for n in ("cat", "dog")]:
        path = Path("photos") / split_name / name
        path.mkdir(parents=True)
        for i in range(64):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path / f"{i}.png")
    Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)).save("photo.jpg")


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_pages_run(photos, capsys):
    with mock.patch.dict(MODELS):  # docs/copy-a-model.md adds one
        done = []
        for page in PAGES:
            namespace = {}
            for language, text in blocks(page):
                if language == "python":
                    exec(compile(text, page, "exec"), namespace)
                else:
                    for words in commands(text):
                        run_command(words, done, capsys)
            if page == "README.md":
                assert namespace["logits"].shape == (2, 10)


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    for language, text in blocks(page):
        if language == "console":
            for words in commands(text):
                check_command(words)


def test_the_data_of_the_page_is_read(photos):
    """The commands of docs/own-images.md on tables, tar shards and Parquet files, up to the training."""
    pd, webdataset = pytest.importorskip("pandas"), pytest.importorskip("webdataset")
    paths = sorted(Path("photos").rglob("*.png"))
    rows = [(str(path), path.parent.name, path.parts[1], i, i / 2) for i, path in enumerate(paths)]
    frame = pd.DataFrame(rows, columns=["path", "label", "split", "age", "weight"])
    frame.to_csv("photos.csv", index=False)
    images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    pd.DataFrame({"image": images, "label": frame.label}).to_parquet("photos.parquet")
    Path("shards").mkdir()
    for name, part in (("train-000", frame[:99]), ("train-001", frame[99:]), ("val-000", frame[::9])):
        with webdataset.TarWriter(f"shards/{name}.tar") as shard:
            for path, label in zip(part.path, part.label, strict=True):
                shard.write({"__key__": path[:-4].replace("/", "-"), "png": Path(path).read_bytes(), "cls": label})
    lines = [words[2:] for _, text in blocks("docs/own-images.md") for words in commands(text)]
    configs = [train.main.parse(line).data for line in lines if re.search("--data=(table|wds|hf):", " ".join(line))]
    found = [(dataset.class_names, len(dataset.train), len(dataset.eval)) for dataset in map(load_dataset, configs)]
    both = ("cat", "dog")
    assert found == [(both, 128, 128), (("age", "weight"), 128, 128), (both, 256, 29), (both, 230, 26)]


def test_every_page_with_code_is_tested():
    pages = [path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]]
    assert {page for page in pages if blocks(page)} == set(PAGES)


def test_commands_come_after_the_environment_that_they_need():
    """`make train` installs into .venv, which must be activated before the commands that follow."""
    assert "\nBIN := .venv/bin\n" in MAKEFILE
    for page in PAGES[:2]:
        lines = [
            " ".join(words) for language, text in blocks(page) if language == "console" for words in commands(text)
        ]
        first = next(i for i, line in enumerate(lines) if line.startswith("vit-jax"))
        assert "make train" in lines[:first]
        assert lines[first - 1] == "source .venv/bin/activate"


def test_the_address_of_the_repository_is_one():
    paths = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.py")]
    for path in paths:
        for address in re.findall(r"https://github\.com/[\w-]+/vit-jax\b", path.read_text()):
            assert address == REPOSITORY, path
        for address in re.findall(r"https://colab\.research\.google\.com/\S+?\.ipynb", path.read_text()):
            start = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
            assert address.startswith(f"{start}/blob/main/notebooks/"), path
            assert (ROOT / "notebooks" / Path(address).name).exists(), address


def test_deviations_are_those_of_the_headers():
    assert (ROOT / "docs/deviations.md").read_text() == make_deviations.page(), "run python docs/make_deviations.py"


@pytest.mark.parametrize("name", MODELS)
def test_every_model_and_its_presets_are_in_the_tables(name):
    page, remedy = (ROOT / "docs/models.md").read_text(), f"run python docs/make_models.py {name}"
    assert f"| [`{name}`](" in page, remedy
    assert list_presets(name) == re.findall(rf"^\| `{name}/(\S+)` \|", page, re.M), remedy
