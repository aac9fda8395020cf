"""Links, pipes and folders in place of files: nothing outside of the workdir is read or written."""

import contextlib
import json
import os
import shutil

import pytest

from tests.hostile_workdir import QUICK, one_line
from tests.runs import train as run
from train.errors import UserError
from train.run import integrity
from train.run.curves import draw_curves
from train.run.files import read_small, write_atomically
from train.run.inventory import set_damaged_aside
from train.run.records import Metrics
from train.run.stored import load_run


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
