"""Images become inputs: decoded, cropped and resized."""

import numpy as np
import pytest
from PIL import Image

from tests.pictures import lazy, noise, write_folder
from train.config import Data
from train.data import eval_batches, image_to_input, load_dataset, train_batches
from train.data.transforms import center_crop, decode, evaluation_crop, random_crop, simple_crop
from train.errors import UserError
from vit_jax.pretrained.preprocessing import Preprocessing


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


@pytest.mark.parametrize("full", [(30, 40), (41, 20)])
def test_simple_crop_is_a_window_on_the_resized_image_with_reflected_borders(full):
    image, scale = noise(*full), 12 / min(full)
    resized = Image.fromarray(image).resize((int(full[1] * scale), int(full[0] * scale)), Image.Resampling.BICUBIC)
    padded = np.pad(np.asarray(resized), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = {
        padded[y : y + 12, x : x + 12].tobytes(): (y, x)
        for y in range(padded.shape[0] - 11)
        for x in range(padded.shape[1] - 11)
    }
    rng = np.random.default_rng(0)
    found = {windows[simple_crop(image, (12, 12), rng).tobytes()] for _ in range(2000)}
    assert len(found) == len(windows)  # every window comes


def test_simple_crop_of_an_extreme_shape_is_the_central_one():
    image = np.zeros((1, 50_000, 1), np.uint8)  # resized, it would have 2**27 pixels
    assert simple_crop(image, (64, 64), np.random.default_rng(0)).shape == (64, 64, 1)


def test_images_in_memory_get_simple_crops():
    dataset, config = load_dataset(Data()), Data(random_crop="simple")
    batch, whole = next(train_batches(dataset, config, 64, 0)), {image.tobytes() for image in dataset.train.images}
    assert batch["image"].shape == (64, 8, 8, 1)
    assert sum(image.tobytes() in whole for image in batch["image"]) < 8  # one window in 81 is the image


def test_decode_palette_alpha_and_16_bits(tmp_path):
    picture = Image.fromarray(noise(8, 8)).quantize(8)
    picture.save(tmp_path / "p.png", transparency=bytes([0, 128, 255, 255]))
    np.testing.assert_array_equal(decode(tmp_path / "p.png", 3, "p"), np.asarray(picture.convert("RGB")))
    deep = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(decode(tmp_path / "deep.png", 1, "deep")[..., 0], [[0, 0, 1], [128, 255, 255]])


@pytest.mark.parametrize("size", [(40, 64), (64, 40)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_evaluation_prepares_images_as_published_weights_expect(tmp_path, mode, size):
    Image.fromarray(noise(*size)).save(tmp_path / "photo.png")
    config = Data(eval_crop=0.9, crop_mode=mode, interpolation="bilinear")
    mean = (0.2, 0.4, 0.6)
    expected = Preprocessing((32, 24), 0.9, mode, "bilinear", mean).pixels(tmp_path / "photo.png")
    np.testing.assert_array_equal(image_to_input(tmp_path / "photo.png", (32, 24, 3), config, mean), expected)


def test_evaluation_of_an_extreme_shape_is_the_central_crop():
    image = np.zeros((1, 50_000, 1), np.uint8)
    image[:, 25_000:] = 255
    crop = evaluation_crop(
        image, Preprocessing(64)
    )  # resized whole, it would have 3.2 million columns and 2**27 pixels
    assert crop.shape == (64, 64, 1)
    assert crop[:, 0].max() < 64 < 192 < crop[:, -1].min()


def test_images_are_resized_with_the_configured_interpolation():
    image, rng = noise(20, 20), lambda: np.random.default_rng(0)
    nearest = random_crop(image, (64, 64), 0.25, rng(), "nearest")
    assert {tuple(pixel) for pixel in nearest.reshape(-1, 3)} <= {tuple(pixel) for pixel in image.reshape(-1, 3)}
    assert (random_crop(image, (64, 64), 0.25, rng()) != nearest).any()


def test_channels_can_be_chosen(tmp_path):
    write_folder(tmp_path)
    assert load_dataset(Data(f"folder:{tmp_path}", channels=1)).image_shape == (12, 10, 1)
    coloured, grey = load_dataset(Data(channels=3)), load_dataset(Data())
    np.testing.assert_array_equal(coloured.train.images, np.tile(grey.train.images, 3))


def test_images_in_memory_are_cropped_too():
    config = Data(min_crop=0.3, eval_crop=0.5)
    dataset = load_dataset(config)
    enlarged = [Image.fromarray(image[..., 0]).resize((16, 16), 3) for image in dataset.eval.images[:4]]
    expected = [np.asarray(image.crop((4, 4, 12, 12)))[..., None] for image in enlarged]
    np.testing.assert_array_equal(next(eval_batches(dataset, config, 4))["image"], expected)
    whole = {image.tobytes() for image in dataset.train.images}
    assert not any(image.tobytes() in whole for image in next(train_batches(dataset, config, 64, 0))["image"])


def test_image_to_input_is_what_evaluation_sees(tmp_path):
    dataset, config = lazy(tmp_path, eval_crop=0.8)
    batch = next(eval_batches(dataset, config, 2))
    for path, image in zip(["000.png", "002.png"], batch["image"], strict=True):
        found = image_to_input(tmp_path / "val/a" / path, dataset.image_shape, config, dataset.mean)
        np.testing.assert_array_equal(found, image)
    with pytest.raises(UserError, match=r"cannot read the image .*nowhere\.png"):
        image_to_input(tmp_path / "nowhere.png", dataset.image_shape, config, dataset.mean)
