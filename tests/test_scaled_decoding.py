"""Large JPEGs are decoded at a smaller size for training, which changes little; all else is decoded as it is."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from tests.image_files import exif, with_exif
from tests.pictures import noise, take, write_folder
from train.config import Data
from train.data import eval_batches, load_dataset, train_batches
from train.data.transforms import MARGIN, Unreadable, decode, opened, random_crop, simple_crop
from vit_jax.pretrained.preprocessing import Preprocessing

SIZE = (24, 20)
CROPS = {
    "center": lambda image, **options: random_crop(image, SIZE, 1.0, np.random.default_rng(0), **options),
    "random": lambda image, **options: random_crop(image, SIZE, 0.5, np.random.default_rng(0), **options),
    "simple": lambda image, **options: simple_crop(image, SIZE, np.random.default_rng(0), **options),
}


def jpeg(height, width, mode="RGB", orientation=1, **options):
    file = io.BytesIO()
    Image.fromarray(noise(height, width)).convert(mode).save(file, "JPEG", quality=95, **options)
    return with_exif(file.getvalue(), exif(orientation))


def both(contents, crop, channels=3, **options):
    """A crop of a file that may be decoded at a smaller size, the same crop of all its pixels, and the reduction."""
    with opened(io.BytesIO(contents), channels, "photo") as image:
        found = crop(image, **options)
        return found, crop(decode(io.BytesIO(contents), channels, "photo"), **options), image.reduction


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(
    ("contents", "channels"),
    [
        (jpeg(403, 310), 3),
        (jpeg(403, 310, "L"), 1),
        (jpeg(403, 310, "L"), 3),
        (jpeg(403, 310, "CMYK"), 3),
        (jpeg(403, 310, progressive=True, subsampling=0), 3),
        *[(jpeg(392, 312, orientation=number), 3) for number in range(2, 9)],
    ],
)
def test_a_reduced_image_gives_nearly_the_same_crops(contents, channels, crop):
    found, expected, reduction = both(contents, CROPS[crop], channels)
    assert reduction == 4
    assert found.shape == (*SIZE, channels)
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=3)


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_turned_image_is_reduced_without_a_remainder(orientation):
    """A remainder would be at the top or left, and shift the crop."""
    found, expected, reduction = both(jpeg(402, 314, orientation=orientation), CROPS["center"])
    assert reduction == 2
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=3)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_is_known_before_decoding(orientation):
    contents = jpeg(40, 60, orientation=orientation)
    with opened(io.BytesIO(contents), 3, "photo") as image:
        image.reduce(4.0)
        assert image.size == decode(io.BytesIO(contents), 3, "photo").shape[:2]
        assert np.asarray(image.decoded).shape[:2] == tuple(side // 4 for side in image.size)


def png():
    file = io.BytesIO()
    Image.fromarray(noise(400, 320)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("contents", "options"),
    [
        (png(), {}),
        (jpeg(400, 320), {"interpolation": "nearest"}),
        (jpeg(2 * MARGIN * SIZE[0] - 1, 320), {}),
        (jpeg(400, 2 * MARGIN * SIZE[1] - 1), {}),
    ],
)
def test_what_is_not_reduced_stays_exactly_the_same(contents, options):
    found, expected, reduction = both(contents, CROPS["center"], **options)
    assert reduction == 1
    np.testing.assert_array_equal(found, expected)


def test_a_truncated_image_is_unreadable_at_any_size():
    with pytest.raises(Unreadable, match=r"cannot read the image photo: .*truncated"):
        both(jpeg(400, 320)[:-2000], CROPS["center"])


def test_only_training_reduces_images_and_only_if_it_may(tmp_path):
    write_folder(tmp_path, {"train": 4, "val": 2}, size=lambda i: (120 + i, 100 + i), suffix="jpg")
    config = Data(f"folder:{tmp_path}", image_size=SIZE, min_crop=0.9)
    dataset = load_dataset(config)
    whole = dataclasses.replace(config, scaled_decoding=False)
    reduced, exact = (take(train_batches(dataset, c, 4, seed=0), 1)[0]["image"].astype(int) for c in (config, whole))
    assert 0 < np.abs(reduced - exact).max() < 8
    expected = [Preprocessing(SIZE, 1.0).pixels(path) for path in dataset.eval.paths]
    np.testing.assert_array_equal(next(eval_batches(dataset, config, 2))["image"], expected)
