"""The command line: every option documented, every mistake one line, nothing left on disk."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import pytest

import train.main
from tests.runs import TINY
from tests.runs import train as run
from train.config import Config
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
    config = parse([])  # the defaults shown are those of the recipe that goes with the data
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
    from train.config import config_from_dict

    config = parse(
        ["--data.image-size", "8", "16", "--data.mean", "0.5", "--model-args", "depth=2", "--distill.args", "a=1"]
    )
    assert config.data.image_size == (8, 16)
    assert config_from_dict(Config, json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_default_workdirs_are_plain_names():
    assert parse([]).workdir == "runs/t2t-digits"
    assert parse(["--model=vit/s16", "--data=folder:/a b/c"]).workdir == "runs/vit-s16-folder--a-b-c"
    assert parse(["--workdir=here"]).workdir == "here"


def test_tpu_means_bfloat16():
    assert parse(["--tpu"]).dtype == "bfloat16"
    assert parse([]).dtype == "float32"


@pytest.mark.parametrize(
    "argv", [["--nonsense"], ["--steps=abc"], ["--dtype=float16"], ["--optim.name=adam"], ["--recipe"]]
)
def test_misspelt_options_exit_with_two(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert argv[0].split("=")[0] in err
    assert "Traceback" not in err


def error(capsys, workdir, *options, base=TINY):
    """The one line that a mistake gives."""
    assert run(workdir, *options, base=base) == 2
    _out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


MISTAKES = [
    ("--model=vti", r"unknown model: 'vti'; did you mean vit"),
    ("--model=vit/huge", "unknown preset of model 'vit': 'huge'; expected one of tiny, "),
    ("depth=many", "--model vit/tiny: depth='many': expected int"),
    ("dmi=3", "unknown argument of model 'vit': 'dmi'; did you mean dim"),
    ("depth", "--model-args 'depth': expected KEY=VALUE"),
    ("heads=0", "--model vit/tiny: "),
    ("image_size=8", "--model-args image_size: comes from the data; see --data.image-size"),
    ("patch_size=3", "image_size=8: expected multiples of patch_size=3"),
    ("--data=folder:/nowhere", "/nowhere"),
    ("--data=tfds:nothing", "tfds build nothing --file_format=array_record"),
    ("--data=mnist", "unknown data 'mnist': expected digits, tfds:NAME or folder:PATH"),
    ("--recipe=nope", "--recipe nope: expected one of digits"),
    ("--batch-size=33", "--batch-size is 33; it must be a positive multiple of 8: 8 devices share a batch"),
    ("--eval-batch-size=33", "--eval-batch-size is 33; it must be a positive multiple of 8"),
    ("--mesh=tensor=3", "--mesh tensor=3: has 6 places for the 8 devices"),
    ("--epochs=0", "--epochs is 0.0; it must be positive"),
    ("--epochs=nan", "--epochs is nan"),
    ("--steps=0", "--steps is 0; it must be 1 or more"),
    ("--eval-epochs=0", "--eval-epochs is 0.0"),
    ("--eval-epochs=inf", "--eval-epochs is inf"),
    ("--log-steps=0", "--log-steps is 0"),
    ("--keep=0", "--keep is 0"),
    ("--save-steps=-1", "--save-steps is -1; it must be 0 or more"),
    ("--processes=2", "--coordinator HOST:PORT, --processes and --process go together, or not at all"),
    ("--seed=-1", "--seed is -1"),
    ("--seed=4294967296", "--seed is 4294967296; it must be at least 0 and below 2**32"),
    ("--label-smoothing=1", "--label-smoothing is 1.0"),
    ("--augment.erasing=1.5", "--augment.erasing is 1.5; it must be a probability, 0 to 1"),
    ("--augment.mixup=-1", "--augment.mixup is -1.0"),
    ("--optim.lr=0", "--optim.lr is 0.0; it must be positive"),
    ("--optim.lr=nan", "--optim.lr is nan"),
    ("--optim.ema=1", "--optim.ema is 1.0"),
    ("--optim.accumulate=0", "--optim.accumulate is 0"),
    ("--optim.accumulate=3", "--batch-size is 32; it must be a positive multiple of 24: 8 devices share a batch in 3"),
    ("--distill.temperature=0", "--distill.temperature is 0.0"),
    ("--distill.temperature=nan", "--distill.temperature is nan"),
    ("--distill.alpha=1.1", "--distill.alpha is 1.1"),
    ("--distill.teacher=vit/tiny", "--distill.teacher vit/tiny: expected a workdir with checkpoints, or a model name"),
    ("--init=/nowhere.pth", "/nowhere.pth"),
]


def test_the_teachers_image_size_is_checked(tmp_path, capsys):
    options = ["--distill.image-size", "0", "8", f"--workdir={tmp_path / 'run'}"]
    assert main(options) == 2
    assert "--distill.image-size is (0, 8); it must be a height and a width of 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "expected"), MISTAKES, ids=[option for option, _ in MISTAKES])
def test_mistakes_are_one_line_and_leave_nothing(option, expected, tmp_path, capsys):
    message = error(capsys, tmp_path / "run", option)
    assert expected in message
    assert list(tmp_path.iterdir()) == []


def test_tpu_is_required_where_it_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    message = error(capsys, tmp_path / "run", "--tpu")
    for device in jax.devices():
        assert str(device) in message
    assert list(tmp_path.iterdir()) == []


def no_cluster(**_):
    raise ValueError("coordinator_address should be defined.")


def test_tpu_without_one_from_a_shell(tmp_path):
    command = [sys.executable, "-m", "train.main", "--model=t2t", "--tpu", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=train.main.__file__.rsplit("/", 2)[0])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --tpu needs TPUs; the devices here are ")
    assert list(tmp_path.iterdir()) == []


def test_workdirs_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        assert f"--workdir {workdir} cannot be written" in error(capsys, workdir)
    assert (tmp_path / "file").read_text() == "mine"


def test_another_configuration_is_refused_with_the_difference(tmp_path, capsys):
    claimed = parse([*TINY, f"--workdir={tmp_path}", "--steps=4"])
    from train.build import DataInfo
    from train.data import load_dataset
    from train.workdir import claim_workdir

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

    elsewhere = tmp_path.parent / f"{tmp_path.name}-moved"  # a run may be moved
    tmp_path.rename(elsewhere)
    claim_workdir(dataclasses.replace(claimed, workdir=str(elsewhere)), info)

    (elsewhere / "config.json").write_text("{}")
    assert "holds no run of this version" in error(capsys, elsewhere)


def test_diverging_and_interruption_have_their_own_status(monkeypatch, capsys):
    from train.metrics import Diverged

    for raised, status, said in ((Diverged("why"), 1, "stopped: why\n"), (KeyboardInterrupt(), 130, "interrupted: ")):

        def stop(config, preemption, raised=raised):
            raise raised

        monkeypatch.setattr(train.main, "fit", stop)
        assert main([]) == status
        assert capsys.readouterr().err.startswith(said)
