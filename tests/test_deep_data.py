"""Datasets of 16 bits, floats and bands, from files to a trained run."""

import jax
import numpy as np
import pytest
from PIL import Image

from tests.image_files import BLACK_IS_ZERO, RGB, png, tiff
from tests.runs import train
from train.build import DataInfo, build_objective
from train.config import Augment, Config, Data
from train.data import eval_batches, load_dataset, train_batches
from train.data.augment import augment, normalize
from train.data.channels import common_form
from train.data.transforms import as_picture, center_crop, evaluation_crop
from train.errors import UserError
from train.prediction import make_predict, read_images
from train.run.stored import load_run
from vit_jax.pretrained.preprocessing import Preprocessing

BICUBIC = Image.Resampling.BICUBIC
LEVELS = {"uint8": 255, "uint16": 65535, "float32": 1}


def bands(dtype="uint16", size=(8, 8), count=5, seed=0):
    """Noise of `count` bands; floats are not in 0..1."""
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return rng.normal(3, 20, (*size, count)).astype(dtype)
    return rng.integers(0, LEVELS[dtype], (*size, count), dtype, endpoint=True)


def write(root, image_of, train=6, val=4):
    """Files NUMBER.npy of two classes, from a function of the number; those for evaluation count from 100."""
    for split, start, count in (("train", 0, train), ("val", 100, val)):
        for i in range(start, start + count):
            path = root / split / "ab"[i % 2] / f"{i:03}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, image_of(i))
    return root


@pytest.mark.parametrize("dtype", LEVELS)
def test_batches_keep_the_type_of_the_files(tmp_path, dtype):
    """From memory, and decoded anew because the images differ in size."""
    (tmp_path / "equal").mkdir()
    image_of = lambda i: bands(dtype, (8, 8) if i % 2 else (9, 8), seed=i)
    of_equal = lambda i: bands(dtype, seed=i)
    for folder, images, options in (("equal", of_equal, {}), ("other", image_of, {"image_size": (8, 8)})):
        config = Data(f"folder:{write(tmp_path / folder, images)}", **options)
        dataset = load_dataset(config)
        assert (dataset.image_shape, dataset.pixels) == ((8, 8, 5), dtype)
        batch = next(train_batches(dataset, config, 4, 0))["image"]
        assert (batch.shape, batch.dtype) == ((4, 8, 8, 5), dtype)
        (batch,) = eval_batches(dataset, config, 4)
        assert batch["image"].dtype == dtype
        np.testing.assert_array_equal(batch["image"][3], images(103))
        np.testing.assert_array_equal(batch["image"][2], images(101))
    every = np.stack([of_equal(i) for i in range(6)]).astype(np.float64) / LEVELS[dtype]
    found = load_dataset(Data(f"folder:{tmp_path}/equal"))
    np.testing.assert_allclose(found.mean, every.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.std, every.std((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("dtype", LEVELS)
def test_normalisation_divides_by_white(dtype):
    image = bands(dtype)[None]
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (1.0, 0.5, 0.25, 2.0, 3.0)
    expected = (image.astype(np.float64) / LEVELS[dtype] - mean) / std
    np.testing.assert_allclose(normalize(image, mean, std), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", LEVELS)
def test_each_band_is_resized_as_by_pillow(dtype):
    """Four bands too, which are no RGB with alpha."""
    image = bands(dtype, (20, 30), 4)
    found = center_crop(image, (10, 15))
    assert found.dtype == dtype
    for band in range(4):
        as_floats = Image.fromarray(image[..., band].astype(np.float32)).resize((15, 10), BICUBIC)
        expected = np.asarray(as_floats).astype(np.float64)
        if dtype != "float32":
            expected = expected.clip(0, LEVELS[dtype])
        atol = {"uint8": 1, "uint16": 0.5, "float32": 0}[dtype]  # of bytes, Pillow rounds the coefficients too
        np.testing.assert_allclose(found[..., band].astype(np.float64), expected, atol=atol)
    np.testing.assert_array_equal(center_crop(image, (20, 30)), image)


@pytest.mark.parametrize("dtype", LEVELS)
def test_borders_have_the_mean_of_each_band(dtype):
    mean = (0.0, 0.2, 0.4, 0.6, 1.0)
    prepare = Preprocessing((12, 8), 1.0, "border")
    found = evaluation_crop(bands(dtype), prepare, mean)
    np.testing.assert_array_equal(found[2:10], bands(dtype))
    border = np.array(mean) * LEVELS[dtype]
    np.testing.assert_array_equal(found[0, 0], border.astype(dtype) if dtype == "float32" else border.round())


def test_files_of_eight_and_sixteen_bits_are_read_at_sixteen(tmp_path):
    colours = bands(count=3)
    (tmp_path / "deep.png").write_bytes(png(colours, RGB))
    (tmp_path / "byte.png").write_bytes(png((colours >> 8).astype(np.uint8), RGB))
    paths = [str(tmp_path / f"{name}.png") for name in ("byte", "deep")]
    form, (note,) = common_form(paths[:1], paths[1:], Data())
    assert form == (3, "uint16")
    assert note == f"images of 8 and 16 bits are mixed; all are read at 16 bits: {paths[0]}, {paths[1]}"
    assert common_form(paths, paths, Data(pixels="uint8")) == ((3, "uint8"), ())
    assert common_form(paths, paths, Data(channels=1, pixels="float32")) == ((1, "float32"), ())


def test_files_that_cannot_be_read_alike_are_named(tmp_path):
    for name, image in (("floats", bands("float32")), ("bands", bands()), ("six", bands(count=6))):
        np.save(tmp_path / f"{name}.npy", image)
    paths = {path.stem: str(path) for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"differ in their number of channels: 5 \(.*bands.npy\) and 6 \(.*six.npy\)"):
        common_form([paths["bands"]], [paths["six"]], Data())
    with pytest.raises(UserError, match=r"type of their samples: float32 \(.*floats.npy\) and uint16 \(.*bands.npy\)"):
        common_form([paths["bands"], paths["floats"]], [], Data())


def test_randaugment_needs_bytes():
    few = dict(mean=(0.5,) * 5, std=(0.5,) * 5)
    with pytest.raises(UserError, match=r"--augment.randaugment-layers needs uint8 images, not uint16: --data.pixels"):
        augment(jax.random.key(0), bands()[None], np.eye(2, dtype=np.float32)[:1], Augment(randaugment_layers=1), **few)


def test_objectives_that_change_colours_need_them_in_range():
    """They clip to 0..1."""
    info = DataInfo((), (8, 8, 1), (3.0,), (20.0,), pixels="float32")
    with pytest.raises(UserError, match=r"--objective lejepa takes pixels in 0\.\.1, but the images have a mean of 3"):
        build_objective(Config(model="vit", objective="lejepa"), info)


def test_all_other_augmentations_take_bands():
    config = Augment(crop_padding=2, flip=True, erasing=0.5, mixup=0.2, cutmix=1.0)
    images = np.stack([bands(seed=i) for i in range(2)])
    few = dict(mean=(0.5,) * 5, std=(0.5,) * 5)
    found, _ = jax.eval_shape(
        lambda key: augment(key, images, np.eye(2, dtype=np.float32), config, **few), jax.random.key(0)
    )
    assert (found.shape, found.dtype) == ((2, 8, 8, 5), np.float32)


@pytest.mark.parametrize("dtype", LEVELS)
def test_any_image_can_be_looked_at(dtype):
    for count, mode in ((1, "L"), (3, "RGB"), (5, "L")):
        picture = np.asarray(as_picture(bands(dtype, count=count)))
        assert picture.shape == ((8, 8, 3) if mode == "RGB" else (8, 8))
    assert np.asarray(as_picture(np.full((2, 2, 1), LEVELS[dtype], dtype))).max() in (0, 255)


def test_a_run_on_five_bands_of_sixteen_bits(tmp_path, capsys):
    """Trained on TIFF, it predicts .npy files and reads both in the same way."""
    pytest.importorskip("tifffile")
    for split, i in (("train", 0), ("train", 1), ("train", 2), ("train", 3), ("val", 4), ("val", 5)):
        path = tmp_path / "data" / split / "ab"[i % 2] / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiff(bands(seed=i), BLACK_IS_ZERO, extra_samples=[0] * 4))
    options = (f"--data=folder:{tmp_path}/data", "--steps=2", "--batch-size=4", "--eval-batch-size=2")
    assert train(tmp_path / "run", *options) == 0
    assert "4 training and 2 evaluation images, 8x8x5 uint16" in capsys.readouterr().out
    run = load_run(tmp_path / "run")
    assert run.info.image_shape == (8, 8, 5)
    assert run.info.pixels == "uint16"

    file, array = tmp_path / "data/val/b/5.tif", tmp_path / "5.npy"
    np.save(array, bands(seed=5))
    expected = (bands(seed=5) / 65535 - np.array(run.info.mean)) / np.array(run.info.std)
    for path in (file, array):
        np.testing.assert_allclose(run.preprocess(path), expected, atol=1e-5)
    found = run.predict(file)
    assert found == run.predict(array)
    pixels, errors = read_images(run, [array], 1)
    assert (pixels.dtype, errors) == ("uint16", {})
    assert sorted(found.values()) == sorted(make_predict(run)(pixels)[0].tolist())
    (tmp_path / "photo.png").write_bytes(png(bands("uint8", count=3), RGB))
    with pytest.raises(UserError, match=r"photo\.png: it has 3 channels: expected 5"):
        run.predict(tmp_path / "photo.png")
