"""Images are upright, whatever orientation their EXIF block has; damaged blocks do no harm."""

import io
import runpy
import warnings

import numpy as np
import pytest
from PIL import Image

from tests.image_files import (
    BLACK_IS_ZERO,
    COLOURS,
    GREY,
    RGB,
    SHALLOW,
    TIFF_RGB,
    chunk,
    exif,
    pixels,
    png,
    saved,
    tiff,
    with_exif,
)
from train.config import Data
from train.data import image_to_input, load_dataset, transforms

# For each orientation, the sides of the picture where the first row and column of the file belong, as EXIF defines it.
ROW_AND_COLUMN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(picture, orientation):
    """The pixels in a file of this EXIF orientation that shows `picture`."""
    row, column = ROW_AND_COLUMN[orientation]
    if row in ("left", "right"):
        picture = picture.swapaxes(0, 1)
    if row in ("bottom", "right"):
        picture = picture[::-1]
    return picture[:, ::-1] if column in ("bottom", "right") else picture


@pytest.mark.parametrize("orientation", ROW_AND_COLUMN)
@pytest.mark.parametrize("channels", [1, 3])
def test_orientation(orientation, channels):
    picture = COLOURS if channels == 3 else COLOURS[..., 0]
    held = np.ascontiguousarray(stored(picture, orientation))
    block = exif(orientation)
    for contents in (
        png(held, RGB if channels == 3 else GREY, extra=chunk(b"eXIf", block[6:])),
        tiff(held, TIFF_RGB if channels == 3 else BLACK_IS_ZERO, orientation=orientation),
    ):
        np.testing.assert_array_equal(pixels(contents, channels), picture.reshape(3, 2, channels))


def test_orientation_of_jpeg_decides_on_size_and_statistics(tmp_path):
    """Images of rotated files are upright, in training and in prediction."""
    picture = np.zeros((24, 16, 3), np.uint8)
    picture[:8] = 255
    for split in ("train", "val"):
        for name in "ab":
            path = tmp_path / split / name / "0.jpg"
            path.parent.mkdir(parents=True)
            held = np.ascontiguousarray(stored(picture, 6))
            path.write_bytes(with_exif(saved(held, "JPEG", quality=100), exif(6)))
    config = Data(f"folder:{tmp_path}")
    dataset = load_dataset(config)
    assert dataset.image_shape == (24, 16, 3)
    for found in (dataset.train[0][0], image_to_input(tmp_path / "val/a/0.jpg", (24, 16, 3), config, dataset.mean)):
        np.testing.assert_allclose(found.astype(int), picture, atol=3)


@pytest.mark.filterwarnings("ignore:(Corrupt|Possibly corrupt) EXIF")
@pytest.mark.parametrize("block", [b"", b"Exif\0\0", exif(6)[:20], exif(9), exif(0), b"Exif\0\0" + bytes(100)])
def test_damaged_or_strange_exif_leaves_an_image_as_it_is(block):
    contents = with_exif(saved(SHALLOW, "JPEG", quality=100), block)
    np.testing.assert_allclose(pixels(contents, 1)[..., 0], SHALLOW, atol=8)
    assert pixels(contents, 1).shape == (2, 3, 1)


def test_damage_that_does_no_harm_is_no_warning():
    """Pillow warns of truncated EXIF, in the middle of a run and without naming the file."""
    contents = with_exif(saved(SHALLOW, "JPEG", quality=100), exif(6)[:20])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="Corrupt EXIF"):
            Image.open(io.BytesIO(contents))
        module = runpy.run_path(transforms.__file__)  # as a process imports it; pytest has filters of its own
        assert module["decode"](io.BytesIO(contents), 1, "it").shape == (2, 3, 1)
