"""Files of a workdir with damaged or malicious content."""

import contextlib
import json
import re

import pytest

from tests.hostile_workdir import QUICK, one_line, reseal
from tests.runs import train as run
from train import convert, predict, probe
from train.build import build_model
from train.config import Config
from train.errors import UserError
from train.run import files, integrity
from train.run.inventory import best_step, set_damaged_aside
from train.run.json_files import parse_json
from train.run.records import Metrics, read_records
from train.run.stored import load_run, read_run_file


def edited(workdir, *path, value):
    """config.json with another value at a path of keys."""
    stored = place = json.loads((workdir / "config.json").read_text())
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(stored)


CONFIGS = [
    (("config", "optim", "lr"), None, r"config.optim.lr is None; it must be a number"),
    (("config", "optim", "lr"), "1", r"config.optim.lr is '1'; it must be a number"),
    (("config", "batch_size"), 10**30, r"config.batch_size is 1000.*; it must be a whole number from 1"),
    (("config", "data"), [], r"config.data is \[\]; it must be an object"),
    (("config", "model_args"), [1], r"config.model_args\[0\] is 1; it must be text"),
    (("config", "flux"), 1, r"config.flux is not a key of this version"),
    (("config", "\x1b[2J"), 1, r"config.'\\x1b\[2J' is not a key of this version"),
    (("config", "loss"), ["softmax"], r"config.loss is \['softmax'\]; it must be softmax or sigmoid"),
    (("dataset", "image_shape"), [8, 8], r"dataset.image_shape is \[8, 8\]; it must be 3 values"),
    (("dataset", "image_shape"), [8, 0, 1], r"dataset.image_shape\[1\] is 0; it must be a whole number from 1"),
    (("dataset", "image_shape"), [8, True, 1], r"dataset.image_shape\[1\] is True; it must be a whole number from 1"),
    (("dataset", "mean"), [float("nan")], r"dataset.mean\[0\] is nan; it must be a number"),
    (("dataset", "mean"), [], r"dataset.mean and dataset.std must have 1 values"),
    (("dataset", "std"), [0.0], r"dataset.std\[0\] is 0.0; it must be a number above 0"),
    (("dataset", "class_names"), "ab", r"dataset.class_names is 'ab'; it must be"),
    (("dataset", "class_names"), [[["a"]]], r"dataset.class_names\[0\] is \[\['a'\]\]; it must be"),
]


@pytest.mark.parametrize(("path", "value", "said"), CONFIGS, ids=[".".join(path) for path, *_ in CONFIGS])
def test_a_damaged_configuration_names_file_and_key(path, value, said, copy):
    (copy / "config.json").write_text(edited(copy, *path, value=value))
    with pytest.raises(UserError, match=rf"(?s)holds no run of this version: .*config.json.*: {said}") as error:
        read_run_file(copy)
    assert len(str(error.value)) < 600


NO_JSON = {
    "empty": b"",
    "nul": b"\0",
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "deep object": b'{"config":' * 100_000,
    "null": b"null",
    "number": b"5",
    "list": b"[1]",
    "text": b'"x"',
    "digits": b"9" * 5000,
    "other keys": b'{"x": null}',
    "large": b" " * (files.SMALL + 1),
}


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON.keys())
def test_files_that_hold_something_else(content, copy):
    def expect(call, said):
        with pytest.raises(UserError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 600

    folder = copy / "checkpoints" / "4"
    for file, call, said in (
        (copy / "config.json", lambda: read_run_file(copy), "config.json cannot be read: "),
        (folder / "metrics" / "metrics", lambda: best_step(copy), "metrics cannot be read: "),
    ):
        before = file.read_bytes()
        file.write_bytes(content)
        expect(call, said)
        file.write_bytes(before)
    (folder / integrity.FILE).write_bytes(content)
    assert integrity.damage(folder).startswith("checksums.json cannot be read: ")


@pytest.mark.parametrize("content", [b"[]", b'"x"', b"[" * 100_000, b"{}", b'{"tree_metadata": 5}'])
def test_metadata_of_orbax_that_is_damaged(content, copy, capsys):
    for step in ("2", "4"):
        (copy / "checkpoints" / step / "state" / "_METADATA").write_bytes(content)
        reseal(copy / "checkpoints" / step)
    with pytest.raises(UserError, match=r"the checkpoint .* cannot be read: ") as error:
        load_run(copy)
    assert "\n" not in str(error.value)
    assert run(copy, *QUICK) == 2
    one_line(capsys, "error: the checkpoint ")


def test_position_of_a_checkpoint_that_is_damaged(copy):
    for step in ("2", "4"):
        (copy / "checkpoints" / step / "data" / "metadata").write_text('{"window": [[1, {"loss": "x"}]], "records": 2}')
        reseal(copy / "checkpoints" / step)
    with pytest.raises(UserError, match=r"cannot be read: window\[0\]\[1\].loss is 'x'; it must be a number"):
        load_run(copy)


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [('{"accuracy": 1.0}', "it has no loss"), (f'{{"loss": {"9" * 400}}}', "loss is 9+.* must be a number")],
)
def test_metrics_that_are_damaged_are_set_aside(copy, metrics, reason):
    (copy / "checkpoints" / "4" / "metrics" / "metrics").write_text(metrics)
    reseal(copy / "checkpoints" / "4")
    with pytest.raises(UserError, match=f"metrics cannot be read: {reason}"):
        best_step(copy)
    said = []
    assert set_damaged_aside(copy, said.append) == 2
    assert re.search(reason, said[0])


def test_every_command_answers_a_damaged_workdir_in_one_line(copy, tmp_path, capsys):
    image = tmp_path / "image.png"
    (copy / "config.json").write_text(edited(copy, "dataset", "image_shape", value=[8, None, 1]))
    commands = {
        "predict": lambda: predict.main([str(image), f"--workdir={copy}"]),
        "probe": lambda: probe.main([f"--workdir={copy}"]),
        "convert": lambda: convert.main([str(copy), f"--out={tmp_path / 'out'}"]),
        "teacher": lambda: run(tmp_path / "new", *QUICK, f"--teacher={copy}"),
        "init-from": lambda: run(tmp_path / "new", *QUICK, f"--init-from={copy}"),
        "restart": lambda: run(copy, *QUICK),
    }
    for name, command in commands.items():
        assert command() == 2, name
        assert "config.json cannot be read: dataset.image_shape[1] is None" in one_line(capsys, "error: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("config", "model"), "nope", "--model nope: unknown model: 'nope'"),
        (("config", "model_args"), ["depth=99999"], "--model-args 'depth=99999': "),
        (("dataset", "image_shape"), [16384, 16384, 1], "images of 16384x16384x1 are too large"),
    ],
)
def test_a_configuration_that_builds_no_model_is_named(path, value, said, copy):
    (copy / "config.json").write_text(edited(copy, *path, value=value))
    with pytest.raises(UserError, match=f"^{re.escape(f'{copy}/config.json: {said}')}"):
        load_run(copy)


def test_absurd_images_take_no_memory(finished):
    """Tracing computes position tables: those of 50 million patches took gigabytes."""
    info = read_run_file(finished).dataset
    for shape in ((8192, 8192, 2), (7071, 7072, 1)):
        with pytest.raises(UserError, match=r"too large|50,006,112 patches; expected at most"):
            build_model("simple_vit", ("patch_size=1",), info._replace(image_shape=shape))


def test_what_is_declared_is_what_is_read():
    with pytest.raises(ValueError, match="steps is '4'; it must be a whole number"):
        parse_json('{"steps": "4"}', Config)
    assert parse_json('{"steps": 4, "data": {"image_size": [8, 16]}}', Config).data.image_size == (8, 16)


def test_lines_that_are_no_records_are_counted(tmp_path):
    good = '{"step": 1, "split": "train", "loss": 1.0}\n'
    others = ["5", "{}", "null", "[" * 100_000, '{"step": true, "split": "a"}', '{"step": 1, "split": 2}', "\0", "é"]
    others += ['{"step": "1", "split": "train"}', '{"step": 1, "split": "train", "loss": null}', "9" * 5000]
    (tmp_path / "metrics.jsonl").write_text(good + "".join(f"{line}\n" for line in others) + good + '{"step": 2, "spl')
    assert [record["loss"] for record in read_records(tmp_path)] == [1.0, 1.0]
    said = []
    with contextlib.closing(Metrics(tmp_path, 1, said.append)) as metrics:
        assert metrics.records == 2
    assert said == [f"warning: {len(others)} lines of {tmp_path}/metrics.jsonl are no records: they are left out"]
    assert (tmp_path / "metrics.jsonl").read_text() == good * 2


@pytest.mark.parametrize("left", [None, 0, 1])
def test_lost_records_are_mentioned(left, copy, capsys):
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 4
    (copy / "metrics.jsonl").unlink()
    if left is not None:
        (copy / "metrics.jsonl").write_text("".join(lines[:left]))
    assert run(copy, *QUICK) == 0
    lost = 4 - (left or 0)
    assert f"warning: {copy}/metrics.jsonl has lost {lost} of 4 records" in capsys.readouterr().out
