"""The trainer's data: sources, transforms, order, resumption, and invalid user input."""

import contextlib
import dataclasses
import json
import math
import os
import shutil

import grain
import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from train.config import Data
from train.data import Dataset, eval_batches, image_to_input, load_dataset, train_batches
from train.data.folder import FolderSource
from train.data.sources import ArraySource
from train.data.transforms import center_crop, decode, random_crop
from train.errors import UserError

SPLITS = {"train": 22, "val": 10}


def noise(height, width, channels=3, seed=0):
    """A smooth random image, which resizing hardly changes."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height)))
    return pixels if channels == 3 else pixels[..., :1]


def write_folder(root, splits=SPLITS, size=lambda i: (12, 10), suffix="png"):
    """A folder of two classes; example i of a split is noise of seed i, size `size(i)`, class i % 2."""
    for split, count in splits.items():
        for i in range(count):
            path = root / split / "ab"[i % 2] / f"{i:03}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(*size(i), seed=i)).save(path)
    return root


def numbered(count, classes=4):
    """A dataset in memory whose image i is filled with the number i."""
    images = np.tile(np.arange(count, dtype=np.uint8)[:, None, None, None], (1, 6, 6, 1))
    source = ArraySource(images, (np.arange(count) % classes).astype(np.int32))
    return Dataset(source, source, tuple("abcd"), (6, 6, 1), (0.5,), (0.5,), ())


def lazy(tmp_path, **changes):
    """A folder dataset that is decoded again in each epoch, as its images differ in size, and its config."""
    write_folder(tmp_path, size=lambda i: (20 + i, 40 - i))
    config = Data(f"folder:{tmp_path}", image_size=(8, 6), **changes)
    return load_dataset(config), config


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


# Sources


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
    crops = [center_crop(dataset.train[int(i * 1.437)][0], (4, 4), 0.5) for i in range(1000)]
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
    np.testing.assert_array_equal(batch["image"][1], center_crop(noise(30, 30, seed=2), (12, 10), 1.0))


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


def truncate(*paths):
    [path.write_bytes(path.read_bytes()[:60]) for path in paths]


def break_files(root):
    truncate(root / "train/b/003.png", root / "train/b/005.png")


def break_all(root):
    truncate(*root.glob("train/*/*.png"))


def break_size(root):
    Image.fromarray(noise(9, 9)).save(root / "train/b/003.png")


@pytest.mark.parametrize(("change", "config", "message"), [
    (break_root, {}, "there is no folder ROOT"),
    (break_train, {}, "expected ROOT/train/CLASS/ and ROOT/val/CLASS/; there is no folder ROOT/train"),
    (break_val, {}, "has no split val or validation or test to evaluate on; it has none"),
    (break_nothing, {"eval_split": "dev"}, "has no split dev to evaluate on; it has: val"),
    (break_images, {}, "no images in ROOT/train/CLASS/"),
    (break_eval_images, {}, "no images in ROOT/val/CLASS/"),
    (break_one_class, {}, "no images in ROOT/train/a"),
    (break_class, {}, "ROOT/val has a class that train lacks: b"),
    (break_to_single, {}, "has a single class, 'a': expected two or more"),
    (break_files, {}, "2 of 22 training images cannot be read, more than 1%: ROOT/train/b/003.png, ROOT/train/b/005"),
    (break_all, {}, "cannot read the image ROOT/train/a/000.png: "),
    (break_size, {}, "differ in size (12x10 and 9x9): pass --data.image-size H W"),
    (break_nothing, {"mean": (0.5,)}, "data.mean has 1 values: expected 3"),
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
    (break_nothing, {"name": "imagenet"}, "data 'imagenet': expected digits, tfds:NAME or folder:PATH"),
    (break_nothing, {"name": "folder:"}, "unknown data 'folder:'"),
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
    monkeypatch.setattr("train.data.dataset.open_digits", lambda config: pytest.fail("the data was opened"))
    with pytest.raises(UserError, match=rf"\(16000, 10000\): .* needs {need / 2**30:.2f} GiB, but there are only "):
        load_dataset(config)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_next_image_stands_in_for_a_broken_one(tmp_path, workers):
    dataset, config = lazy(tmp_path, workers=workers)
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
    # Whoever resumes sees the same, without workers too.
    config = dataclasses.replace(config, workers=0)
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
    expected = [center_crop(noise(12, 10, seed=i), size, 1.0) for i in (0, 2, 4, 6, 8, 1, 5, 7, 9)]
    np.testing.assert_array_equal(rows["image"][seen], expected)
    assert rows["label"][seen].tolist() == [0] * 5 + [1] * 4
    path = tmp_path / "val/b/003.png"
    assert f"warning: 1 of 10 evaluation images cannot be read; the latest is {path}" in capsys.readouterr().err


def test_first_image_may_be_broken(tmp_path, capsys):
    truncate(write_folder(tmp_path) / "train/a/000.png")
    dataset = load_dataset(Data(f"folder:{tmp_path}"))
    np.testing.assert_array_equal(dataset.train[0][0], noise(12, 10, seed=2))
    assert dataset.image_shape == (12, 10, 3)


# Transforms


def test_center_crop_is_resize_then_crop():
    image = noise(64, 80)
    resized = Image.fromarray(image).resize((40, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((12, 8, 28, 24)))  # the central 16 of 32x40
    np.testing.assert_allclose(center_crop(image, (16, 16), 0.5).astype(int), expected.astype(int), atol=1)


def test_center_crop_keeps_the_aspect():
    image = np.zeros((40, 100, 1), np.uint8)
    image[:, 40:60] = 255  # the central 20 columns are all that a 2:1 crop sees
    assert (center_crop(image, (40, 20), 1.0)[:, 2:-2] == 255).all()
    assert center_crop(image, (10, 50), 1.0).shape == (10, 50, 1)


@pytest.mark.parametrize(
    "crop",
    [
        lambda x: center_crop(x, (12, 10), 1.0),
        lambda x: random_crop(x, (12, 10), 1.0, np.random.default_rng(0)),
    ],
)
def test_right_size_passes_untouched(crop):
    image = noise(12, 10)
    np.testing.assert_array_equal(crop(image), image)


def test_random_crop_covers_the_shares_asked_for():
    # A ramp in each direction tells which part of the image a crop shows.
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(0)), axis=-1)
    rng = np.random.default_rng(0)
    crops = [random_crop(image, (64, 64), 0.25, rng).astype(float) for _ in range(300)]
    heights = np.array([crop[-1, 32, 0] - crop[0, 32, 0] for crop in crops]) * 64 / 63 / 255
    widths = np.array([crop[32, -1, 1] - crop[32, 0, 1] for crop in crops]) * 64 / 63 / 255
    areas, aspects = heights * widths, widths / heights
    assert 0.23 < areas.min() < 0.3
    assert areas.max() > 0.9
    assert 0.72 < aspects.min() < 0.8
    assert 1.25 < aspects.max() < 1.39
    assert np.unique([crop[0, 0, 0] for crop in crops]).size > 50


def test_random_crop_of_an_extreme_shape_is_the_central_one():
    image = noise(200, 10)
    crop = random_crop(image, (8, 8), 0.9, np.random.default_rng(0))
    np.testing.assert_array_equal(crop, center_crop(image, (8, 8), 1.0))


def test_decode_palette_alpha_and_16_bits(tmp_path):
    picture = Image.fromarray(noise(8, 8)).quantize(8)
    picture.save(tmp_path / "p.png", transparency=bytes([0, 128, 255, 255]))
    np.testing.assert_array_equal(decode(tmp_path / "p.png", 3, "p"), np.asarray(picture.convert("RGB")))
    deep = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(decode(tmp_path / "deep.png", 1, "deep")[..., 0], [[0, 0, 1], [128, 255, 255]])


def test_images_in_memory_are_cropped_too():
    config = Data(min_crop=0.3, eval_crop=0.5)
    dataset = load_dataset(config)
    expected = [center_crop(image, (8, 8), 0.5) for image in dataset.eval.images[:4]]
    np.testing.assert_array_equal(next(eval_batches(dataset, config, 4))["image"], expected)
    whole = {image.tobytes() for image in dataset.train.images}
    assert not any(image.tobytes() in whole for image in next(train_batches(dataset, config, 64, 0))["image"])


def test_image_to_input_is_what_evaluation_sees(tmp_path):
    dataset, config = lazy(tmp_path, eval_crop=0.8)
    batch = next(eval_batches(dataset, config, 2))
    for path, image in zip(["000.png", "002.png"], batch["image"], strict=True):
        found = image_to_input(tmp_path / "val/a" / path, dataset.image_shape, config)
        np.testing.assert_array_equal(found, image)
    with pytest.raises(UserError, match=r"cannot read the image .*nowhere\.png"):
        image_to_input(tmp_path / "nowhere.png", dataset.image_shape, config)


# Order


def test_batches_are_what_the_loop_expects():
    iterator = train_batches(load_dataset(Data()), Data(), 32, seed=0)
    assert isinstance(iterator, grain.DatasetIterator)
    batch = next(iterator)
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
        "image": (np.uint8, (32, 8, 8, 1)),
        "label": (np.int32, (32,)),
    }


@pytest.mark.parametrize("config", [Data(), Data(min_crop=0.5)])
def test_every_example_once_per_epoch_in_a_new_order(config):
    count, batch_size = 50, 16  # epochs straddle batches
    stream = take(train_batches(numbered(count), config, batch_size, seed=3), 25)
    numbers = np.concatenate([batch["image"][:, 0, 0, 0] for batch in stream]).reshape(8, count)
    labels = np.concatenate([batch["label"] for batch in stream]).reshape(8, count)
    for epoch in numbers:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))
    assert len({epoch.tobytes() for epoch in numbers}) == 8
    np.testing.assert_array_equal(labels, numbers % 4)
    other = next(train_batches(numbered(count), config, batch_size, seed=4))
    assert (other["image"] != stream[0]["image"]).any()


def test_batch_may_be_larger_than_an_epoch():
    batch = next(train_batches(numbered(5), Data(), 12, seed=0))
    counts = np.bincount(batch["image"][:, 0, 0, 0], minlength=5)
    assert counts.sum() == 12
    assert set(counts) <= {2, 3}


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("start", [0, 7])
def test_batches_of_one_image(views, start):
    """An endless dataset in memory has so many batches that their number must not be rounded up."""
    ones = take(train_batches(numbered(5), Data(), 1, seed=0, views=views, start=start), 8)
    whole = take(train_batches(numbered(5), Data(), 15, seed=0, views=views), 1)[0]
    assert_equal(ones, [{key: rows[start + i : start + i + 1] for key, rows in whole.items()} for i in range(8)])


@pytest.mark.parametrize("kind", ["memory", "memory, cropped", "folder", "folder, cropped"])
def test_resume_is_exact(tmp_path, kind):
    crop = 0.3 if "cropped" in kind else 1.0
    if "memory" in kind:
        config = Data(min_crop=crop)
        dataset = load_dataset(config)
    else:
        dataset, config = lazy(tmp_path, min_crop=crop)
    position = int(np.random.default_rng().integers(1, 12))
    whole = train_batches(dataset, config, 5, seed=1)
    take(whole, position)
    state = json.loads(json.dumps(whole.get_state()))
    resumed = train_batches(dataset, config, 5, seed=1)
    resumed.set_state(state)
    assert_equal(take(resumed, 4), take(whole, 4))


def test_random_crops_differ_between_epochs_and_seeds(tmp_path):
    dataset, config = lazy(tmp_path, min_crop=0.3)
    first, second, *_ = take(train_batches(dataset, config, 22, seed=0), 2)
    other = next(train_batches(dataset, config, 22, seed=1))
    images = [{image.tobytes() for image in batch["image"]} for batch in (first, second, other)]
    assert len(set.union(*images)) > 60  # of 66: a narrow image may fall back on its central crop
    again = next(train_batches(dataset, config, 22, seed=0))
    assert_equal([again], [first])


@pytest.mark.slow
def test_workers_change_nothing_and_resume(tmp_path):
    dataset, config = lazy(tmp_path, min_crop=0.3)
    expected = take(train_batches(dataset, config, 6, seed=0), 5)
    in_workers = Data(config.name, image_size=config.image_size, min_crop=0.3, workers=2)
    with contextlib.closing(train_batches(dataset, in_workers, 6, seed=0)) as iterator:
        assert_equal(take(iterator, 3), expected[:3])
        state = json.loads(json.dumps(iterator.get_state()))
    with contextlib.closing(train_batches(dataset, in_workers, 6, seed=0)) as iterator:
        iterator.set_state(state)
        assert_equal(take(iterator, 2), expected[3:])


@pytest.mark.parametrize("kind", ["memory", "folder", pytest.param("workers", marks=pytest.mark.slow)])
def test_start_is_where_others_would_be(tmp_path, kind, monkeypatch):
    """After four batches, data continues identically on any number of processes and workers."""
    config = Data(min_crop=0.3)
    dataset = numbered(50)
    if kind != "memory":
        dataset, config = lazy(tmp_path, min_crop=0.3, workers=1 if kind == "workers" else 0)
    expected = take(train_batches(dataset, dataclasses.replace(config, workers=0), 6, seed=0), 6)[4:]
    if kind != "workers":  # which begin slowly, and do the harder part below
        with contextlib.closing(train_batches(dataset, config, 6, seed=0, start=4)) as iterator:
            assert_equal(take(iterator, 2), expected)
    on_process(monkeypatch, 1, 2)
    with contextlib.closing(train_batches(dataset, config, 6, seed=0, start=4)) as iterator:
        assert_equal(take(iterator, 2), [{key: rows[1::2] for key, rows in batch.items()} for batch in expected])


@pytest.mark.parametrize("config", [Data(), Data(eval_crop=0.5)])
@pytest.mark.parametrize("batch_size", [1, 7, 25, 50, 64])
def test_evaluation_sees_every_example_exactly_once(config, batch_size):
    batches = list(eval_batches(numbered(50), config, batch_size))
    assert len(batches) == -(-50 // batch_size)
    for batch in batches:
        assert batch["image"].shape == (batch_size, 6, 6, 1)
        assert (batch["image"].dtype, batch["label"].dtype, batch["mask"].dtype) == (
            np.uint8,
            np.int32,
            np.float32,
        )
    rows = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    np.testing.assert_array_equal(rows["mask"], np.arange(len(batches) * batch_size) < 50)
    np.testing.assert_array_equal(rows["image"][:50, 0, 0, 0], np.arange(50))
    np.testing.assert_array_equal(rows["label"][:50], np.arange(50) % 4)
    assert not rows["image"][50:].any()
    assert not rows["label"][50:].any()


# Processes


def on_process(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


@pytest.mark.parametrize("min_crop", [1.0, 0.3])
def test_global_batch_does_not_depend_on_the_number_of_processes(monkeypatch, tmp_path, min_crop):
    dataset, config = lazy(tmp_path, min_crop=min_crop)
    whole = take(train_batches(dataset, config, 12, seed=0), 3)
    parts = []
    for index in range(3):
        on_process(monkeypatch, index, 3)
        parts.append(take(train_batches(dataset, config, 12, seed=0), 3))
    for step, expected in enumerate(whole):
        for key in expected:
            shares = np.stack([part[step][key] for part in parts], axis=1)  # process p holds rows p, p + 3, ...
            np.testing.assert_array_equal(shares.reshape(expected[key].shape), expected[key])


@pytest.mark.parametrize("count", [16, 17, 18, 3])
def test_processes_share_the_evaluation(monkeypatch, count):
    numbers, steps = [], set()
    for index in range(4):
        on_process(monkeypatch, index, 4)
        batches = list(eval_batches(numbered(count), Data(), 8))
        steps.add(len(batches))
        for batch in batches:
            assert batch["image"].shape == (2, 6, 6, 1)
            numbers.extend(batch["image"][batch["mask"] == 1, 0, 0, 0])
    assert steps == {-(-count // 8)}
    assert sorted(numbers) == list(range(count))


def test_batch_that_processes_cannot_share(monkeypatch):
    on_process(monkeypatch, 0, 3)
    with pytest.raises(UserError, match="batch size 8: expected a positive multiple of the 3 processes"):
        train_batches(numbered(9), Data(), 8, seed=0)


def test_negative_seed():
    with pytest.raises(UserError, match="seed is -1: expected 0 or more"):
        train_batches(numbered(9), Data(), 3, seed=-1)
