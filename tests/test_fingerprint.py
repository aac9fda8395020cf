"""A run detects that its data has changed since it began, and reports the change."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from tests.pictures import noise, write_folder
from train.build import DataInfo
from train.config import Config, Data, Distill
from train.data import fingerprint, load_dataset
from train.data.fingerprint import changes, difference, fingerprint_of_files, read_fingerprints, write_fingerprints
from train.distill.cached_logits import cached_logits, with_views
from train.distill.teacher import fingerprint_of_weights
from train.errors import UserError
from train.program import prepare_training
from train.run import workdir
from train.sharding import make_mesh
from vit_jax.objectives.distill import Teacher


def of_folder(root):
    return load_dataset(Data(f"folder:{root}")).fingerprints


def remove(root):
    (root / "train/a/004.png").unlink()


def add(root):
    Image.fromarray(noise(12, 10)).save(root / "train/b/new.png")


def rename(root):
    (root / "val/a/002.png").rename(root / "val/a/2.png")


def move(root):
    (root / "train/a/004.png").rename(root / "train/b/004.png")


def empty(root):
    (root / "train/a/004.png").write_bytes(b"")


@pytest.mark.parametrize(("change", "named", "counted"), [
    (remove, "train: 21 examples, previously 22; 1 missing, such as a/004.png",
     "train: 21 examples, previously 22; class 'a' has 1 fewer"),
    (empty, "train: 21 examples, previously 22; 1 missing, such as a/004.png",
     "train: 21 examples, previously 22; class 'a' has 1 fewer"),
    (add, "train: 23 examples, previously 22; 1 added, such as b/new.png",
     "train: 23 examples, previously 22; class 'b' has 1 more"),
    (rename, "eval: 1 added, such as a/2.png; 1 missing, such as a/002.png",
     "eval: class 'a' has as many, but with other names"),
    (move, "train: 1 added, such as b/004.png; 1 missing, such as a/004.png",
     "train: class 'a' has 1 fewer; class 'b' has 1 more"),
])  # fmt: skip
def test_a_change_of_a_folder_is_told(tmp_path, change, named, counted, monkeypatch):
    write_folder(tmp_path / "data")
    before = of_folder(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    assert changes(before, of_folder(tmp_path / "moved")) == ""
    change(tmp_path / "moved")
    assert changes(before, of_folder(tmp_path / "moved")) == named
    monkeypatch.setattr(fingerprint, "CHARACTERS", 5)  # of large datasets the names are not kept
    assert changes(of_folder(tmp_path / "data"), of_folder(tmp_path / "moved")) == counted


def test_another_evaluation_split_is_told(tmp_path):
    root = write_folder(tmp_path, {"train": 4, "test": 4})
    before = of_folder(root)
    (root / "test").rename(root / "val")
    assert of_folder(root)["train"] == before["train"]
    assert changes(before, of_folder(root)) == ""  # the same images, evaluated as before
    Image.fromarray(noise(12, 10)).save(root / "val/a/new.png")
    assert changes(before, of_folder(root)).startswith("eval: split val, previously split test; ")


def test_arrays_are_compared_by_their_content():
    digits = load_dataset(Data()).fingerprints
    assert changes(digits, load_dataset(Data(image_size=(4, 4))).fingerprints) == ""
    other = {"train": digits["train"]._replace(digest="0")}
    assert changes(digits, other) == "train: the same number of examples, but different ones or in a different order"


def test_many_changed_classes_are_counted():
    there, here = (fingerprint_of_files("split train", {f"c{i}": [f"c{i}/{name}"] for i in range(9)}) for name in "xy")
    there, here = (split._replace(names=()) for split in (there, here))
    assert difference(there, here).endswith("class 'c2' has as many, but with other names; 6 more classes differ")


def test_names_that_are_no_unicode_are_kept(tmp_path):
    there = {"train": fingerprint_of_files("split train", {"a": ["a/\udcff.png"]})}
    write_fingerprints(tmp_path / "fingerprints.json", there)
    assert read_fingerprints(tmp_path / "fingerprints.json") == there


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '{"train": 5}', '{"train": null}', '{"train": {"origin": "x"}}', "[" * 100_000]
)
def test_a_damaged_list_is_refused(tmp_path, text):
    (tmp_path / "fingerprints.json").write_text(text)
    with pytest.raises(UserError, match=r"fingerprints\.json cannot be read: .*\. Delete it if nothing has changed"):
        read_fingerprints(tmp_path / "fingerprints.json")


def info_of(dataset):
    return DataInfo(dataset.class_names, dataset.image_shape, dataset.mean, dataset.std)


def claimed(folder, root):
    dataset = load_dataset(Data(f"folder:{root}", mean=(0.5,) * 3, std=(0.5,) * 3))
    config = Config(workdir=str(folder), data=Data(f"folder:{root}"))
    return workdir.claim_workdir(config, info_of(dataset), fingerprints=dataset.fingerprints)


def test_a_run_is_not_continued_on_other_data(tmp_path, capsys):
    root, run = write_folder(tmp_path / "data"), tmp_path / "run"
    claimed(run, root)
    claimed(run, root)
    assert capsys.readouterr().err == ""
    add(root)
    with pytest.raises(UserError) as caught:
        claimed(run, root)
    assert "holds a run that began with other inputs: train: 23 examples, previously 22; 1 added" in str(caught.value)
    # A run of an older version kept no list: from now on it has one.
    (run / "fingerprints.json").unlink()
    claimed(run, root)
    assert f"warning: {run / 'fingerprints.json'} is missing" in capsys.readouterr().err
    remove(root)
    with pytest.raises(UserError, match="22 examples, previously 23; 1 missing"):
        claimed(run, root)


def test_processes_with_different_data_are_refused(tmp_path, monkeypatch):
    """Every process may read a copy of the data on its own disk."""
    here = load_dataset(Data(f"folder:{write_folder(tmp_path / 'data')}")).fingerprints
    digests = {name: fingerprint.digest for name, fingerprint in here.items()}
    info = DataInfo(("a", "b"), (12, 10, 3), (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(workdir, "on_lead", lambda function: (0, digests))
    workdir.claim(Config(workdir=str(tmp_path / "run")), info, fingerprints=here).close()
    monkeypatch.setattr(workdir, "on_lead", lambda function: (0, digests | {"train": "another"}))
    with pytest.raises(UserError, match=r"process 1 has other inputs than process 0: train$"):
        workdir.claim(Config(workdir=str(tmp_path / "run")), info, fingerprints=here)


def test_a_teachers_weights_are_compared():
    there, here = ({"a": jnp.ones(2), "b": np.full(3, value)} for value in (1.0, 2.0))
    before, after = fingerprint_of_weights(there), fingerprint_of_weights(here)
    assert difference(before, fingerprint_of_weights({"b": there["b"], "a": there["a"]})) == ""
    told = difference(before, after)
    assert re.fullmatch(r"weights \w{8}, previously weights \w{8}", told), told


class Brightness(nn.Module):
    """A network with two logits: the image's mean and twice the mean."""

    def __call__(self, images):
        return images.mean((1, 2, 3))[:, None] * jnp.asarray([[1.0, 2.0]])


def test_cached_logits_of_other_images_are_refused(tmp_path):
    root, logits = write_folder(tmp_path / "data", {"train": 8, "val": 4}), tmp_path / "teacher_logits.npy"
    data = Data(f"folder:{root}", mean=(0.5,) * 3, std=(0.5,) * 3)
    config = with_views(Config(data=data, eval_batch_size=8, distill=Distill(teacher="a run", cache=True)))

    def cached():
        dataset = load_dataset(data)
        prepare = prepare_training(config, info_of(dataset))
        teacher = Teacher(Brightness(), data.mean, data.std, data.mean, data.std)
        return np.array(cached_logits(tmp_path, config, dataset, teacher, {}, prepare, make_mesh()))

    expected = [noise(12, 10, seed=i).mean() / 127.5 - 1 for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    np.testing.assert_allclose(cached(), np.outer(expected, [1, 2]), rtol=1e-4, atol=1e-5)
    np.save(logits, np.ones((8, 2), np.float32))
    assert (cached() == 1).all()
    (tmp_path / "teacher_logits.json").unlink()  # as an older version left it: nobody knows for which images
    np.testing.assert_allclose(cached()[:, 0], expected, rtol=1e-4, atol=1e-5)

    np.save(logits, np.zeros((8, 3), np.float32))
    with pytest.raises(UserError, match=r"is damaged \(it holds float32 \(8, 3\), not float32 \(8, 2\)\)"):
        cached()
    logits.write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        cached()
    add(root)
    with pytest.raises(UserError, match=r"other images or another teacher \(train: 9 examples, previously 8"):
        cached()
