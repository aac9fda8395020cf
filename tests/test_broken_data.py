"""Data that cannot be used is refused in one line; single images that cannot be read are skipped."""

import contextlib
import math
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.pictures import SPLITS, assert_equal, lazy, noise, take, truncate, write_folder
from train.config import Data
from train.data import eval_batches, load_dataset, train_batches
from train.data.transforms import center_crop
from train.errors import UserError
from vit_jax.pretrained.preprocessing import Preprocessing


def break_nothing(root): ...
def break_root(root):
    shutil.rmtree(root)


def break_train(root):
    shutil.rmtree(root / "train")


def break_val(root):
    shutil.rmtree(root / "val")


def break_class(root):
    shutil.rmtree(root / "train/b")


def break_images(root):
    [path.unlink() for path in root.glob("train/*/*.png")]


def break_eval_images(root):
    [path.unlink() for path in root.glob("val/*/*.png")]


def break_one_class(root):
    [path.unlink() for path in root.glob("train/a/*.png")]


def break_to_single(root):
    [shutil.rmtree(root / split / "b") for split in SPLITS]


def break_files(root):
    truncate(root / "train/b/003.png", root / "train/b/005.png")


def break_all(root):
    truncate(*root.glob("train/*/*.png"))


def break_size(root):
    Image.fromarray(noise(9, 9)).save(root / "train/b/003.png")


@pytest.mark.parametrize(("change", "config", "message"), [
    (break_root, {}, "there is no folder ROOT"),
    (break_train, {}, "expected ROOT/train/CLASS/ and ROOT/val/CLASS/, or ROOT/CLASS/; there is no folder ROOT/train"),
    (break_val, {"eval_split": "val"}, "has no split val to evaluate on; all its images are for training"),
    (break_nothing, {"eval_split": "dev"}, "has no split dev to evaluate on; it has: val"),
    (break_images, {}, "no images in ROOT/train/CLASS/"),
    (break_eval_images, {}, "no images in ROOT/val/CLASS/"),
    (break_one_class, {}, "no images in ROOT/train/a"),
    (break_class, {}, "ROOT/val has a class that train lacks: b"),
    (break_to_single, {}, "has a single class, 'a': expected two or more"),
    (break_files, {}, "2 of 22 training images cannot be read, more than 1%: ROOT/train/b/003.png, ROOT/train/b/005"),
    (break_all, {}, "cannot read the image ROOT/train/a/000.png: "),
    (break_size, {}, "differ in size (12x10 and 9x9): pass --data.image-size H W"),
    (break_nothing, {"mean": (0.5,)}, "data.mean has 1 value: expected 3"),
    (break_nothing, {"std": (0.5, 0.0, 0.5)}, "--data.std is (0.5, 0.0, 0.5); it must be one or more values, each"),
    (break_nothing, {"min_crop": 0.0}, "--data.min-crop is 0.0; it must be a number from 0.001 to 1"),
    (break_nothing, {"eval_crop": 1.5}, "--data.eval-crop is 1.5; it must be a number from 0.001 to 1"),
    (break_nothing, {"image_size": (0, 8)}, "--data.image-size is (0, 8); it must be 2 values, each a whole number"),
    (break_nothing, {"workers": -1}, "--data.workers is -1; it must be a whole number from 0 to 1,024"),
    (break_nothing, {"workers": 10**6}, "--data.workers is 1000000; it must be"),
    (break_nothing, {"eval_crop": 1e-300}, "--data.eval-crop is 1e-300; it must be"),
    (break_nothing, {"min_crop": math.nan}, "--data.min-crop is nan; it must be"),
    (break_nothing, {"mean": (123.7, 116.8, 103.9)}, "--data.mean is (123.7, 116.8, 103.9); it must be"),
    (break_nothing, {"mean": (math.nan,) * 3}, "--data.mean is (nan, nan, nan); it must be one or more values, each"),
    (break_nothing, {"mean": (-0.1, 0.5, 0.5)}, "--data.mean is (-0.1, 0.5, 0.5); it must be one or more values, each"),
    (break_nothing, {"std": (58.4, 57.1, 57.4)}, "--data.std is (58.4, 57.1, 57.4); it must be"),
    (break_nothing, {"std": (math.inf,) * 3}, "--data.std is (inf, inf, inf); it must be one or more values, each"),
    (break_nothing, {"std": (math.nan,) * 3}, "--data.std is (nan, nan, nan); it must be one or more values, each"),
    (break_nothing, {"std": (1e-300,) * 3}, "--data.std is (1e-300, 1e-300, 1e-300); it must be"),
    (break_nothing, {"image_size": (10**9, 10**9)}, "--data.image-size is (1000000000, 1000000000); it must be"),
    (break_nothing, {"name": "imagenet"}, "unknown data 'imagenet': expected digits, folder:PATH, table:FILE, "),
    (break_nothing, {"name": "folder:"}, "unknown data 'folder:'"),
    (break_nothing, {"name": "digits:x"}, "unknown data 'digits:x'"),
    (break_nothing, {"name": "digits", "eval_split": "val"}, "has no split val to evaluate on; it has: test"),
])  # fmt: skip
def test_mistakes_get_one_clear_line(tmp_path, change, config, message):
    root = write_folder(tmp_path / "data")
    change(root)
    with pytest.raises(UserError) as caught:
        load_dataset(Data(**{"name": f"folder:{root}"} | config))
    assert message.replace("ROOT", str(root)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("numbers", "bytes_per_value"), [({}, 20), ({"mean": (0.5,), "std": (0.5,)}, 4)])
def test_an_image_size_beyond_memory_is_refused_unseen(monkeypatch, numbers, bytes_per_value):
    """Every thread has an image as bytes and, to measure the mean, its squares in float64."""
    config = Data(image_size=(16_000, 10_000), **numbers)
    need = 16_000 * 10_000 * 3 * bytes_per_value * os.cpu_count()
    monkeypatch.setattr("train.data.dataset.host_memory", lambda: need - 1)
    monkeypatch.setattr("train.data.sources.open_digits", lambda *_, **__: pytest.fail("the data was opened"))
    with pytest.raises(UserError, match=rf"\(16000, 10000\): .* needs {need / 2**30:.2f} GiB, but there are only "):
        load_dataset(config)


def test_the_next_image_stands_in_for_a_broken_one(tmp_path):
    dataset, config = lazy(tmp_path)
    truncate(tmp_path / "train/b/003.png")  # example 12 of 22; 13 is train/b/005.png
    said = []
    with contextlib.closing(train_batches(dataset, config, 22, seed=0, warn=said.append)) as iterator:
        first, second = take(iterator, 2)
    assert first.keys() == {"image", "label"}
    expected = center_crop(noise(25, 35, seed=5), (8, 6), 1.0)
    for batch in (first, second):
        assert sum((image == expected).all() for image in batch["image"]) == 2
        assert len(np.unique(batch["image"].reshape(22, -1), axis=0)) == 21
    path = tmp_path / "train/b/003.png"
    assert said == [f"warning: 1 of 22 training images cannot be read; the latest is {path}"]
    # Whoever resumes sees the same.
    with contextlib.closing(train_batches(dataset, config, 22, seed=0, start=1, warn=said.append)) as iterator:
        assert_equal(take(iterator, 1), [second])


def test_too_many_broken_images_end_a_run(tmp_path):
    dataset, config = lazy(tmp_path)
    truncate(tmp_path / "train/b/003.png", tmp_path / "train/a/004.png")
    message = r"2 of 22 training images cannot be read, more than 1%: .*/a/004\.png, .*/b/003\.png, \.\.\."
    iterator = train_batches(dataset, config, 22, seed=0, warn=lambda _: None)
    with contextlib.closing(iterator), pytest.raises(UserError, match=message):
        take(iterator, 1)


@pytest.mark.parametrize("size", [(8, 6), (12, 10)])  # decoded anew, and once
def test_broken_images_are_left_out_of_evaluations(tmp_path, size, capsys):
    write_folder(tmp_path)
    truncate(tmp_path / "val/b/003.png")
    config = Data(f"folder:{tmp_path}", image_size=size)
    dataset = load_dataset(config)
    batches = list(eval_batches(dataset, config, 4))
    rows = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    seen = rows["mask"] == 1
    preprocessing = Preprocessing(size, crop_pct=1.0)
    expected = [preprocessing.pixels(noise(12, 10, seed=i)) for i in (0, 2, 4, 6, 8, 1, 5, 7, 9)]
    np.testing.assert_array_equal(rows["image"][seen], expected)
    assert rows["label"][seen].tolist() == [0] * 5 + [1] * 4
    path = tmp_path / "val/b/003.png"
    assert f"warning: 1 of 10 evaluation images cannot be read; the latest is {path}" in capsys.readouterr().err


def test_first_image_may_be_broken(tmp_path, capsys):
    truncate(write_folder(tmp_path) / "train/a/000.png")
    dataset = load_dataset(Data(f"folder:{tmp_path}"))
    np.testing.assert_array_equal(dataset.train[0][0], noise(12, 10, seed=2))
    assert dataset.image_shape == (12, 10, 3)
