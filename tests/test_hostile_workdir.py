"""Workdirs with odd names, damage or malicious content: nothing is lost, hangs, or is written outside."""

import contextlib
import dataclasses
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from tests.runs import train as run
from train import convert, predict, probe
from train.build import build_model
from train.commandline.options import expand_user
from train.config import Config
from train.errors import UserError
from train.main import parse
from train.run import checkpoint, files, integrity
from train.run.checkpoint import open_checkpoints
from train.run.curves import draw_curves
from train.run.files import check_orbax_name, orbax_path, read_small, write_atomically
from train.run.inventory import best_step, set_damaged_aside, step_of
from train.run.json_files import parse_json
from train.run.records import Metrics, read_records
from train.run.stored import load_run, read_run_file
from train.run.workdir import claim

QUICK = ("--steps=4", "--eval-epochs=0.05")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir with checkpoints of steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert run(workdir, *QUICK) == 0
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of `finished` that a test may damage."""
    return shutil.copytree(finished, tmp_path / "run")


def one_line(capsys, beginning):
    err = capsys.readouterr().err
    assert err.startswith(beginning), err
    assert err.count("\n") == 1, err
    return err


def reseal(folder):
    """Recompute the checksums for the present content, as an attacker can."""
    (folder / integrity.FILE).unlink()
    integrity.seal(epath.Path(folder), int(folder.name))


# Any name


ODD = ["[1]", "x*y", "a?b", r"a\b", "gs:", "x\udcffy", "new\nline", "{a} %2f 'é' \"~\" #;|&<>$HOME", "\u202e"]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_checkpoints_read_back_under_any_name(name, tmp_path):
    workdir = tmp_path / "parent" / name
    workdir.mkdir(parents=True)
    state = {"step": jnp.int32(3), "w": jnp.arange(4.0)}
    with contextlib.closing(open_checkpoints(workdir, keep=2)) as manager:
        manager.save(3, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics={"loss": 1.0})
    assert integrity.damage(workdir / "checkpoints" / "3") is None
    assert best_step(workdir) == 3
    with contextlib.closing(open_checkpoints(workdir)) as manager:
        found = manager.restore(3, args=ocp.args.Composite(state=ocp.args.StandardRestore(state)))["state"]
    np.testing.assert_array_equal(found["w"], state["w"])
    assert os.listdir(tmp_path) == ["parent"]
    assert os.listdir(tmp_path / "parent") == [name]


def test_a_run_continues_in_a_workdir_of_any_name(tmp_path, capsys):
    workdir = tmp_path / "[1] \\x*?"
    assert run(workdir, *QUICK) == 0
    assert load_run(workdir).params
    capsys.readouterr()
    assert run(workdir, *QUICK) == 0
    assert "continues after step 4" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == [workdir.name]


def test_a_converted_folder_reads_back_under_any_name(finished, tmp_path, capsys):
    out = tmp_path / "w" / "fl[1]\\"
    assert convert.main([str(finished), f"--out={out}"]) == 0
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    config = read_run_file(finished).config
    options = [*config.model_args, "image_size=8", "channels=1", "num_classes=10"]
    back = tmp_path / "back.safetensors"
    assert convert.main([str(out), "--model=vit", f"--out={back}", "--model-args", *options]) == 0


@pytest.mark.parametrize("without", ["processes", "descriptors"])
def test_an_odd_name_is_refused_where_it_would_be_lost(without, tmp_path, monkeypatch, capsys):
    if without == "processes":
        monkeypatch.setattr(jax, "process_count", lambda: 2)
    else:
        monkeypatch.setattr(files, "DESCRIPTORS", "/nowhere")
    with pytest.raises(UserError, match=r"checkpoints cannot be written to '/.*\[1\]': expected printable characters"):
        check_orbax_name(tmp_path / "[1]")
    check_orbax_name(tmp_path / "plain é")
    if without == "descriptors":
        assert run(tmp_path / "[1]", *QUICK) == 2
        assert not list(tmp_path.iterdir())


def test_the_first_checkpoint_is_read_back(tmp_path, monkeypatch, capsys):
    """Even if Orbax changes a path, a run does not continue with checkpoints that cannot be read."""
    monkeypatch.setattr(checkpoint, "orbax_path", lambda folder: epath.Path(folder).resolve())
    workdir = tmp_path / "exp[1]"
    assert run(workdir, *QUICK) == 1
    message = one_line(capsys, "stopped: a checkpoint cannot be written: ")
    assert "NOT_FOUND" in message


# Names of steps


NO_STEPS = ("0099", "²", "٣", "1٣", "+1", "1_0", "", "3.orbax-checkpoint-tmp", "9" * 40, "3\n")


@pytest.mark.parametrize(("name", "step"), [("0", 0), ("31", 31), *((name, None) for name in NO_STEPS)])
def test_step_of(name, step):
    assert step_of(name) == step


def test_what_is_no_step_does_not_block_a_run(copy, capsys):
    for name in ("0099", "²", "9٩"):
        shutil.copytree(copy / "checkpoints" / "2", copy / "checkpoints" / name)
    (copy / "checkpoints" / "notes.txt").write_text("mine")
    assert best_step(copy) in (2, 4)
    said = []
    assert set_damaged_aside(copy, said.append) == 4
    assert len(said) == 3
    assert all("is damaged (its name is not a step): moved to" in line for line in said)
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["2", "4", "notes.txt"]


def test_a_renamed_checkpoint_is_not_another_step(copy, capsys):
    (copy / "checkpoints" / "4").rename(copy / "checkpoints" / "31")
    said = []
    assert set_damaged_aside(copy, said.append) == 2
    assert "is damaged (it is the checkpoint of step 4, renamed)" in said[0]


def test_the_states_own_step_is_compared(copy):
    folder = (copy / "checkpoints" / "4").rename(copy / "checkpoints" / "31")
    shutil.rmtree(copy / "checkpoints" / "2")
    reseal(folder)
    with pytest.raises(UserError, match=r"the checkpoint .*/31 is that of step 4, renamed"):
        load_run(copy)
    assert run(copy, *QUICK) == 2


# Small files


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


# Records


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


# Links and what is no file


@pytest.fixture
def outside(tmp_path):
    """A file outside the workdir, which must not change."""
    path = tmp_path / "outside"
    path.write_text("{}")
    yield path
    assert path.read_text() == "{}"
    assert not path.is_symlink()


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "config.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_of_the_run_is_not_opened(kind, name, copy, outside, capsys):
    (copy / name).unlink()
    if kind == "link":
        (copy / name).symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(copy / name)
    else:
        (copy / name).mkdir()
    assert run(copy, *QUICK) in (1, 2)
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert str(copy / name) in err[0]


def test_pictures_and_drafts_replace_links(tmp_path, outside):
    with contextlib.closing(Metrics(tmp_path, 0)) as metrics:
        metrics.write(1, "train", {"loss": 1.0})
    for name in ("curves.png", "curves.tmp.png", f"config.json.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(outside)
    draw_curves(tmp_path)
    write_atomically(tmp_path / "config.json", "{}")
    assert not (tmp_path / "curves.png").is_symlink()


@pytest.mark.parametrize("name", ["checkpoints", "damaged"])
def test_folders_of_a_workdir_are_no_links(name, copy, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(copy / name, ignore_errors=True)
    (copy / name).symlink_to(elsewhere)
    assert run(copy, *QUICK) == 2
    one_line(capsys, f"error: {copy / name} is not a folder")
    assert list(elsewhere.iterdir()) == []


def test_a_workdir_may_be_a_link_itself(copy, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    assert run(tmp_path / "link", *QUICK) == 0


def test_a_link_among_checkpoints_is_moved_not_followed(copy, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(copy / "checkpoints" / "4", elsewhere)
    for name in ("31", "5.orbax-checkpoint-tmp"):
        (copy / "checkpoints" / name).symlink_to(elsewhere)
    assert set_damaged_aside(copy, lambda line: None) == 4
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["2", "4"]
    assert (elsewhere / integrity.FILE).exists()


@pytest.mark.parametrize(
    "name", ["/dev/zero", "../../../outside", "state/../../../../outside", "pipe", "link", "", "."]
)
def test_checksums_open_nothing_but_files_of_the_checkpoint(name, copy, outside):
    folder = copy / "checkpoints" / "4"
    seal = json.loads((folder / integrity.FILE).read_text())
    seal["files"][name] = "0"
    (folder / integrity.FILE).write_text(json.dumps(seal))
    if name == "pipe":
        os.mkfifo(folder / name)
    if name == "link":
        (folder / name).symlink_to(outside)
    said = {"pipe": "pipe cannot be read: it is neither", "link": "link cannot be read: it is neither"}
    assert integrity.damage(folder).startswith(said.get(name, f"{name!r} is missing"))


@pytest.mark.parametrize("place", ["state/d", "state/_METADATA", "metrics/metrics", "_CHECKPOINT_METADATA"])
def test_a_pipe_in_a_checkpoint_is_not_opened(place, copy):
    for step in ("2", "4"):
        path = copy / "checkpoints" / step / place
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        os.mkfifo(path)
    with pytest.raises(UserError, match=r"regular file"):
        load_run(copy)


def test_a_file_larger_than_expected_is_not_read(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(OSError, match=r"it has 1,099,511,627,776 bytes; expected at most"):
        read_small(tmp_path / "large")


# Places


def test_the_home_folder_is_expanded_wherever_a_path_begins(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["~/a", "--workdir=~/b", "--data=folder:~/c", "folder:~", "--optim.name=~", "a~/b", "--model-args", "x=~"]
    expanded = ["/home/me/a", "--workdir=/home/me/b", "--data=folder:/home/me/c", "folder:/home/me"]
    assert expand_user(given) == [*expanded, "--optim.name=/home/me", "a~/b", "--model-args", "x=~"]
    config = parse(["--workdir=~/run", "--init=~/w.pth", "--init-from=~/r", "--data=folder:~/x", "--teacher=~/t"])
    assert (config.workdir, config.init, config.init_from) == ("/home/me/run", "/home/me/w.pth", "/home/me/r")
    assert (config.data.name, config.distill.teacher) == ("folder:/home/me/x", "/home/me/t")


def test_commands_expand_the_home_folder(finished, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(finished.parent))
    assert predict.main(["--workdir=~/other", "image.png"]) == 2
    assert str(finished.parent / "other") in one_line(capsys, "error: ")
    assert convert.main(["~/run", "--out=~/out.safetensors"]) == 0
    assert (finished.parent / "out.safetensors").exists()


@pytest.mark.parametrize("workdir", ["gs://bucket/run", "s3://bucket/run", "hdfs://bucket/run", "/dev/null/run"])
def test_a_place_that_cannot_be_reached_is_one_line(workdir, capsys):
    pytest.importorskip("fsspec")
    assert run(workdir, *QUICK) == 2
    assert workdir in one_line(capsys, "error: ")
    with pytest.raises(UserError, match=workdir):
        load_run(workdir)


def test_probe_takes_a_store_as_it_is(capsys):
    pytest.importorskip("fsspec")
    assert probe.main(["--workdir=nowhere://bucket/run"]) == 2
    assert "nowhere://bucket/run: expected a local path, or one that begins with gs:// or s3://" in one_line(
        capsys, "error: "
    )


def test_orbax_path_keeps_plain_names(tmp_path):
    assert orbax_path(tmp_path) == epath.Path(tmp_path)


def test_a_claim_needs_no_checkpoint(copy):
    shutil.rmtree(copy / "checkpoints")
    found = read_run_file(copy)
    claimed = claim(dataclasses.replace(found.config, workdir=str(copy)), found.dataset)
    assert claimed.start == 0
    claimed.close()
