"""Datasets of Hugging Face, as the package datasets writes and reads them."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from tests.pictures import noise
from train.config import Data
from train.data import load_dataset
from train.data.huggingface import open_huggingface
from train.errors import UserError

datasets = pytest.importorskip("datasets")

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(numbers, **columns):
    """A dataset whose image i is noise of seed i."""
    images = [Image.fromarray(noise(12, 10, seed=i)) for i in numbers]
    labels = (
        {"label": [i % 3 for i in numbers]} if not columns else {n: list(map(v, numbers)) for n, v in columns.items()}
    )
    made = datasets.Dataset.from_dict({"image": images, **labels}).cast_column("image", datasets.Image())
    return made if columns else made.cast_column("label", datasets.ClassLabel(names=["zebra", "ant", "cat"]))


def opened(path, **changes):
    return open_huggingface(str(path), Data(f"hf:{path}", **changes))


def check(source, numbers):
    """Assert that a source has the examples of `rows(numbers)` in order."""
    assert len(source) == len(numbers)
    for i, number in enumerate(numbers):
        image, label = source[i]
        np.testing.assert_array_equal(image, noise(12, 10, seed=number))
        assert label == number % 3


def save_to_disk(folder):
    datasets.DatasetDict(train=rows(range(9)), test=rows(range(9, 12))).save_to_disk(folder)


def parquet_files(folder):
    folder.mkdir()
    rows(range(5)).to_parquet(folder / "train-00000-of-00002.parquet")
    rows(range(5, 9)).to_parquet(folder / "train-00001-of-00002.parquet")
    rows(range(9, 12)).to_parquet(folder / "test-00000-of-00001.parquet")


@pytest.mark.parametrize("write", [save_to_disk, parquet_files])
def test_splits_classes_and_images(tmp_path, write):
    write(tmp_path / "data")
    parts = opened(tmp_path / "data")
    assert parts.class_names == ("zebra", "ant", "cat")
    check(parts.train, range(9))
    check(parts.eval, range(9, 12))
    assert any("split test also choose" in note for note in parts.notes)
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = opened(tmp_path / "moved").fingerprints
    assert {name: f.count for name, f in moved.items()} == {"train": 9, "eval": 3}


def test_one_file_is_divided_and_kept_in_memory(tmp_path):
    rows(range(12)).to_parquet(tmp_path / "p.parquet")
    dataset = load_dataset(Data(f"hf:{tmp_path / 'p.parquet'}", split=0.75))
    assert sorted(label for _, label in dataset.eval) == [0, 1, 2]
    found = sorted(image.tobytes() for source in (dataset.train, dataset.eval) for image, _ in source)
    assert found == sorted(noise(12, 10, seed=i).tobytes() for i in range(12))


def test_a_fingerprint_depends_on_the_images(tmp_path):
    for name, numbers in (("a", [0, 1, 2, 3]), ("b", [0, 1, 2, 3]), ("c", [0, 1, 2, 6])):
        (tmp_path / name).mkdir()
        rows(numbers * 2).to_parquet(tmp_path / name / "p.parquet")
    one, same, other = (opened(tmp_path / name / "p.parquet", split=0.5).fingerprints for name in "abc")
    assert one == same
    assert one != other


@pytest.mark.parametrize("stored", ["files", "bytes"])
def test_orientation_is_applied_as_to_files(tmp_path, stored):
    image, exif = Image.fromarray(noise(12, 10)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    values = [str(tmp_path / "a.png")] * 4
    if stored == "bytes":
        values = [(tmp_path / "a.png").read_bytes()] * 4
    made = datasets.Dataset.from_dict({"img": values, "y": ["b", "a"] * 2})
    if stored == "files":
        made = made.cast_column("img", datasets.Image())
    made.save_to_disk(tmp_path / "saved")
    parts = opened(tmp_path / "saved")
    assert parts.class_names == ("a", "b")
    np.testing.assert_array_equal(parts.train[0][0], np.rot90(noise(12, 10), -1))


def test_several_labels_and_numbers(tmp_path):
    made = rows(range(8), tags=lambda i: [0, 1][: i % 3], size=lambda i: i / 4)
    made = made.cast_column("tags", datasets.List(datasets.ClassLabel(names=["wet", "dry"])))
    made.save_to_disk(tmp_path / "saved")
    parts = opened(tmp_path / "saved", target="multilabel")
    assert parts.class_names == ("wet", "dry")
    by_image = {noise(12, 10, seed=i).tobytes(): i for i in range(8)}
    for image, target in (parts.train[i] for i in range(len(parts.train))):
        assert target.tolist() == [float(name in [0, 1][: by_image[image.tobytes()] % 3]) for name in (0, 1)]
    parts = opened(tmp_path / "saved", target="regression", label_columns=("size",))
    image, target = parts.train[0]
    assert target.tolist() == [by_image[image.tobytes()] / 4]


def unlabelled(folder):
    rows(range(6)).cast_column("label", datasets.Value("int64")).map(lambda _: {"label": -1}).cast_column(
        "label", datasets.ClassLabel(names=["a", "b"])
    ).save_to_disk(folder)


def broken_file(folder):
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"PAR1 nothing PAR1")


@pytest.mark.parametrize(("write", "changes", "message"), [
    (lambda f: datasets.Dataset.from_dict({"a": [1]}).save_to_disk(f), {}, "no column of images: its columns are a"),
    (save_to_disk, {"image_column": "label"}, "--data.image-column is label, which has no images; image has"),
    (save_to_disk, {"label_columns": ("kind",)}, "has no column named kind; it has: image, label"),
    (save_to_disk, {"eval_split": "val"}, "has no split val to evaluate on; it has: test"),
    (save_to_disk, {"target": "regression"}, "label of 0 of hf:data train is zebra: expected a number"),
    (unlabelled, {}, "the label of 0 of hf:data train is missing"),
    (broken_file, {}, "hf:.*data cannot be loaded: "),
    (lambda f: f.mkdir(), {}, "data has neither Parquet files nor what save_to_disk writes"),
    (lambda f: None, {}, "there is no file or folder .*data"),
    (lambda f: f.write_text("x"), {}, "data cannot be read: expected a .parquet file or a folder"),
])  # fmt: skip
def test_mistakes_are_one_line(tmp_path, write, changes, message):
    write(tmp_path / "data")
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "data", **changes)
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_a_broken_image_is_skipped_as_a_file_is(tmp_path, capsys):
    images = [{"bytes": b"no image" if i == 3 else None, "path": None} for i in range(6)]
    for i in range(6):
        Image.fromarray(noise(12, 10, seed=i)).save(tmp_path / "a.png")
        images[i]["bytes"] = images[i]["bytes"] or (tmp_path / "a.png").read_bytes()
    made = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3, "split": [0] * 6})
    made.save_to_disk(tmp_path / "saved")
    dataset = load_dataset(Data(f"hf:{tmp_path / 'saved'}", split=0.5))
    assert "images cannot be read; the latest is " in capsys.readouterr().err
    assert dataset.image_shape == (12, 10, 3)


def test_the_package_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'needs the package datasets: pip install "vit-jax\[data\]"'):
        opened("org/name")
