"""Sources of images: the digits, and folders in memory or read lazily."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.pictures import lazy, noise, write_folder
from train.config import Data
from train.data import eval_batches, load_dataset
from train.data.folder import FolderSource
from train.data.sources import ArraySource
from vit_jax.pretrained.preprocessing import Preprocessing


def test_digits():
    dataset = load_dataset(Data())
    assert (len(dataset.train), len(dataset.eval)) == (1437, 360)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.image_shape == (8, 8, 1)
    assert dataset.notes == ()
    parts = [dataset.train, dataset.eval]
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    assert images.dtype == np.uint8
    # Together they are scikit-learn's digits, each once, and the split is stratified.
    scans = load_digits()
    found = sorted(
        (label, (image * 16.0 / 255).round().astype(int).tobytes()) for image, label in zip(images, labels, strict=True)
    )
    expected = sorted(
        (label, image.astype(int).tobytes()) for image, label in zip(scans.images, scans.target, strict=True)
    )
    assert found == expected
    counts = np.bincount(dataset.eval.labels) / np.bincount(scans.target)
    np.testing.assert_allclose(counts, 360 / 1797, atol=0.003)


def test_statistics_are_those_of_an_even_sample():
    dataset = load_dataset(Data())
    sample = dataset.train.images[[int(i * 1.437) for i in range(1000)]] / 255
    np.testing.assert_allclose(dataset.mean, sample.mean(), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, sample.std(), rtol=1e-12)


def test_statistics_are_those_after_the_evaluation_crop():
    config = Data(eval_crop=0.5, image_size=(4, 4))
    dataset = load_dataset(config)
    preprocessing = Preprocessing((4, 4), crop_pct=0.5)
    crops = [preprocessing.fit(Image.fromarray(dataset.train[int(i * 1.437)][0][..., 0])) for i in range(1000)]
    crops = np.stack([np.asarray(crop) for crop in crops])
    np.testing.assert_allclose(dataset.mean, np.mean(crops) / 255, rtol=1e-12)
    np.testing.assert_allclose(dataset.std, np.std(crops) / 255, rtol=1e-12)


def test_statistics_can_be_given():
    dataset = load_dataset(Data(mean=(0.25,), std=(2.0,)))
    assert (dataset.mean, dataset.std) == ((0.25,), (2.0,))
    assert load_dataset(Data(mean=(0.25,))).std == load_dataset(Data()).std


def test_small_equal_folder_is_read_into_memory(tmp_path):
    dataset = load_dataset(Data(f"folder:{write_folder(tmp_path)}"))
    assert isinstance(dataset.train, ArraySource)
    assert isinstance(dataset.eval, ArraySource)
    assert dataset.class_names == ("a", "b")
    assert dataset.image_shape == (12, 10, 3)
    numbers = [*range(0, 22, 2), *range(1, 22, 2)]  # class a, then class b
    for (image, label), number in zip(dataset.train, numbers, strict=True):
        np.testing.assert_array_equal(image, noise(12, 10, seed=number))
        assert label == number % 2


def test_unequal_folder_is_read_lazily(tmp_path):
    dataset, _ = lazy(tmp_path)
    assert isinstance(dataset.train, FolderSource)
    assert dataset.image_shape == (8, 6, 3)
    image, label = dataset.train[1]
    np.testing.assert_array_equal(image, noise(22, 38, seed=2))
    assert label == 0


def test_evaluation_images_may_have_other_sizes(tmp_path):
    write_folder(tmp_path, {"train": 6})
    write_folder(tmp_path, {"val": 6}, size=lambda i: (30, 30) if i else (12, 10))
    config = Data(f"folder:{tmp_path}")
    dataset = load_dataset(config)
    (batch,) = eval_batches(dataset, config, 6)
    assert batch["image"].shape == (6, 12, 10, 3)
    np.testing.assert_array_equal(batch["image"][1], Preprocessing((12, 10), 1.0).pixels(noise(30, 30, seed=2)))


@pytest.mark.parametrize(("present", "wanted", "chosen"), [
    ("val validation test", None, "val"),
    ("validation test", None, "validation"),
    ("test", None, "test"),
    ("val test", "test", "test"),
    ("val other", "other", "other"),
])  # fmt: skip
def test_evaluation_split(tmp_path, present, wanted, chosen):
    counts = {name: 2 * (i + 1) for i, name in enumerate(present.split())}
    write_folder(tmp_path, {"train": 4} | counts)
    assert len(load_dataset(Data(f"folder:{tmp_path}", eval_split=wanted)).eval) == counts[chosen]


def test_what_is_no_image_is_skipped_and_counted(tmp_path):
    write_folder(tmp_path, suffix="JPEG")
    (tmp_path / "train/readme.txt").write_text("hello")
    (tmp_path / "train/a/notes.txt").write_text("hello")
    (tmp_path / "train/a/.hidden.png").write_bytes(b"x")
    (tmp_path / "train/b/empty.png").touch()
    (tmp_path / "val/.cache").mkdir()
    dataset = load_dataset(Data(f"folder:{tmp_path}"))
    assert (len(dataset.train), len(dataset.eval)) == (22, 10)
    (note,) = dataset.notes
    names = "train/a/.hidden.png, train/a/notes.txt, train/b/empty.png, ..."
    assert note == f"5 files skipped (empty or not an image): {names}"


@pytest.mark.parametrize("first", ["L", "RGB", "P", "RGBA", "LA"])
def test_the_first_image_does_not_decide_on_the_channels(tmp_path, first):
    write_folder(tmp_path)
    path = tmp_path / "train/a/000.png"
    Image.open(path).convert(first).save(path)
    dataset = load_dataset(Data(f"folder:{tmp_path}"))
    assert dataset.image_shape == (12, 10, 3)
    np.testing.assert_array_equal(dataset.train[1][0], noise(12, 10, seed=2))
