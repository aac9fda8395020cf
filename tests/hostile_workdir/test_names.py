"""Workdirs and checkpoints of any name, and places that cannot be reached."""

import contextlib
import dataclasses
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from tests.hostile_workdir import QUICK, one_line, reseal
from tests.runs import train as run
from train import convert, predict, probe
from train.commandline.options import expand_user
from train.errors import UserError
from train.main import parse
from train.run import checkpoint, files, integrity
from train.run.checkpoint import open_checkpoints
from train.run.files import check_orbax_name, orbax_path
from train.run.inventory import best_step, set_damaged_aside, step_of
from train.run.stored import load_run, read_run_file
from train.run.workdir import claim

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
