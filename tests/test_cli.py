"""The command line of a run: every option has a description, and options interact as documented."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import pytest

import train.loop
import train.main
import train.setup
from tests.runs import TINY, error
from train.config import Config
from train.errors import UserError
from train.main import main, parse


def test_help_documents_every_option_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m train.main")
    lines = [line.strip("│ ") for line in text.splitlines()]
    options = [" ".join(part.split()) for part in re.split(r"\n(?=--\w|\w+ options|[╭╰])", "\n".join(lines))]
    config = parse([])  # the defaults shown are those of the data's recipe
    parts = {"": config, **{f"{name}.": getattr(config, name) for name in ("data", "augment", "optim", "distill")}}
    for prefix, part in parts.items():
        for field in dataclasses.fields(part):
            value, option = getattr(part, field.name), f"--{prefix}{field.name}".replace("_", "-")
            if dataclasses.is_dataclass(value) or field.name == "workdir":  # parse() has filled in the workdir
                continue
            (text,) = [text for text in options if re.match(f"{option}[ ,]", text)]
            documentation, default = re.fullmatch(r"(.*) \(default:(.*)\)", text).groups()
            assert len(documentation.split()) > 4, text
            assert default.strip(" '") == (" ".join(map(str, value)) if isinstance(value, tuple) else str(value)), text


def test_config_survives_json():
    from train.run.json_files import parse_json

    config = parse(
        ["--data.image-size", "8", "16", "--data.mean", "0.5", "--model-args", "depth=2", "--distill.args", "a=1"]
    )
    assert config.data.image_size == (8, 16)
    assert parse_json(json.dumps(dataclasses.asdict(config)), Config) == config


def test_default_workdirs_are_plain_names():
    assert parse([]).workdir == "runs/t2t-digits"
    assert parse(["--model=vit/s16", "--data=folder:/a b/c"]).workdir == "runs/vit-s16-folder--a-b-c"
    assert parse(["--workdir=here"]).workdir == "here"


def test_tpu_means_bfloat16():
    assert parse(["--tpu"]).dtype == "bfloat16"
    assert parse([]).dtype == "float32"


def test_repeated_arguments_add_up_and_the_last_value_counts():
    config = parse(
        ["--model=vit", "--model-args", "dim=8", "depth=1", "--seed=1", "--model_args", "dim=16", "--seed=2"]
    )
    assert config.model_args[-2:] == ("dim=16", "depth=1")
    assert config.seed == 2
    assert parse(["--objective-args=a=1", "--objective-args=b=2", "c=3"]).objective_args == ("a=1", "b=2", "c=3")


def test_one_number_is_both_sides():
    assert parse(["--data.image-size=64"]).data.image_size == (64, 64)
    assert parse(["--data.image-size", "64", "--seed=1"]).data.image_size == (64, 64)
    assert parse(["--distill.image-size=64"]).distill.image_size == (64, 64)
    assert parse(["--distill.image-size=own"]).distill.image_size == "own"


def test_paths_are_stored_absolute(tmp_path, monkeypatch):
    """So a run can be continued and probed from another folder. Names of published weights are not paths."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("photos", "a/checkpoints", "vit"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "w.pth").touch()
    config = parse(
        ["--data=folder:photos", "--init=w.pth", "--init-from=a", "--teacher=./a", "--teacher-weights=~/w.pth"]
    )
    assert config.data.name == f"folder:{tmp_path}/photos"
    assert config.workdir == "runs/t2t-folder-photos"
    assert (config.init, config.init_from) == (f"{tmp_path}/w.pth", f"{tmp_path}/a")
    assert (config.distill.teacher, config.distill.weights) == (f"{tmp_path}/a", f"{tmp_path}/w.pth")
    config = parse(
        ["--data=tfds:photos", "--data.dir=photos", "--teacher=vit", "--teacher-weights=V1", "--init-from=gs://a/b"]
    )
    assert (config.data.name, config.data.dir) == ("tfds:photos", f"{tmp_path}/photos")
    assert (config.distill.teacher, config.distill.weights, config.init_from) == ("vit", "V1", "gs://a/b")


def test_tpu_is_required_where_it_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    message = error(capsys, tmp_path / "run", "--tpu")
    for device in jax.devices():
        assert str(device) in message
    assert list(tmp_path.iterdir()) == []


def no_cluster(**_):
    raise ValueError("coordinator_address should be defined.")


@pytest.mark.slow
def test_tpu_without_one_from_a_shell(tmp_path):
    command = [sys.executable, "-m", "train.main", "--model=t2t", "--tpu", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=train.main.__file__.rsplit("/", 2)[0])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --tpu needs TPUs, but JAX found ")
    assert list(tmp_path.iterdir()) == []


def test_workdirs_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        assert f"--workdir {workdir} cannot be written" in error(capsys, workdir)
    assert (tmp_path / "file").read_text() == "mine"


def test_another_configuration_is_refused_with_the_difference(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train.setup, "compile_step", lambda *_: pytest.fail("a step was compiled"))  # takes minutes
    claimed = parse([*TINY, f"--workdir={tmp_path}", "--steps=4"])
    from train.build import DataInfo
    from train.data import load_dataset
    from train.run.workdir import claim_workdir

    dataset = load_dataset(claimed.data)
    info = DataInfo(dataset.class_names, dataset.image_shape, dataset.mean, dataset.std)
    claim_workdir(claimed, info)
    before = (tmp_path / "config.json").read_bytes()

    message = error(capsys, tmp_path, "--steps=4", "--optim.lr=0.5", "--model=deepvit")
    assert f"--workdir {tmp_path} holds a run of another configuration: " in message
    assert "model is 'vit' there and 'deepvit' here" in message
    assert "optim.lr is 0.002 there and 0.5 here" in message
    assert "epochs" not in message
    message = error(capsys, tmp_path, "--steps=4", "--data.mean", "0.5")
    assert "data.mean is None there and (0.5,) here" in message
    assert (tmp_path / "config.json").read_bytes() == before
    # Options of logging and speed may change; options that change results may not.
    claim_workdir(dataclasses.replace(claimed, eval_batch_size=8, log_steps=7, keep=1, recipe=None), info)

    stored = json.loads(before)
    stored["config"]["data"]["eval_crop"] = 1.0  # as an older version wrote them
    stored["config"]["distill"]["alpha"] = 0.5
    del stored["config"]["data"]["target"], stored["dataset"]["target"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    claim_workdir(claimed, info)

    elsewhere = tmp_path.parent / f"{tmp_path.name}-moved"  # a run may be moved
    tmp_path.rename(elsewhere)
    claim_workdir(dataclasses.replace(claimed, workdir=str(elsewhere)), info)

    (elsewhere / "config.json").write_text("{}")
    assert "holds no run of this version" in error(capsys, elsewhere)


def test_a_run_continues_from_another_folder(tmp_path, monkeypatch, capsys):
    """Its data have the same location, also if given by another path. Stored relative paths of old runs work too."""
    from train.build import DataInfo
    from train.run.stored import read_run_file
    from train.run.workdir import claim_workdir

    info = DataInfo(("a", "b"), (8, 8, 1), (0.5,), (0.25,))
    (tmp_path / "photos").mkdir()
    (tmp_path / "below").mkdir()
    options = ["--model=vit", f"--workdir={tmp_path / 'run'}"]
    monkeypatch.chdir(tmp_path)
    claim_workdir(parse([*options, "--data=folder:photos"]), info)
    assert read_run_file(tmp_path / "run")[0].data.name == f"folder:{tmp_path}/photos"
    monkeypatch.chdir(tmp_path / "below")
    for name in ("../photos", "../below/../photos/", str(tmp_path / "photos")):
        claim_workdir(parse([*options, f"--data=folder:{name}"]), info)
    with pytest.raises(UserError, match=f"data.name is 'folder:{tmp_path}/photos' there and 'folder:photos' here"):
        claim_workdir(parse([*options, "--data=folder:photos"]), info)

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace(f"folder:{tmp_path}/photos", "folder:photos"))
    claim_workdir(parse([*options, "--data=folder:photos"]), info)


def test_diverging_and_interruption_have_their_own_status(monkeypatch, capsys):
    from train.errors import Diverged

    for raised, status, said in ((Diverged("why"), 1, "stopped: why\n"), (KeyboardInterrupt(), 130, "interrupted: ")):

        def stop(config, preemption, raised=raised):
            raise raised

        monkeypatch.setattr(train.loop, "fit", stop)
        assert main([]) == status
        assert capsys.readouterr().err.startswith(said)
