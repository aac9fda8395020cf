"""Decoding gives the right pixel values for every kind of file, and a clear message for unreadable files."""

import contextlib
import io
import os
import re
import runpy
import subprocess
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile, features

from tests.image_files import chunk, exif, png, pnm, tiff, with_exif
from train.config import Data
from train.data import image_to_input, load_dataset, transforms
from train.data.channels import folder_channels
from train.data.transforms import Unreadable, decode, image_channels
from train.errors import UserError
from vit_jax.images import FORMATS, MAX_PIXELS, SUFFIXES

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG
WHITE_IS_ZERO, BLACK_IS_ZERO, TIFF_RGB, CMYK, YCBCR, LAB = 0, 1, 2, 5, 6, 8  # photometric interpretations of TIFF
ASSOCIATED, UNASSOCIATED = 1, 2  # kinds of alpha in TIFF

DEEP = np.array([[0, 255, 256, 0x1234], [0x8000, 0xFE00, 0xFF00, 0xFFFF]], np.uint16)
UPPER = np.array([[0, 0, 1, 0x12], [0x80, 0xFE, 0xFF, 0xFF]], np.uint8)
COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]], [[1, 2, 3], [200, 100, 50]]], np.uint8)
SHALLOW = np.array([[0, 1, 127], [128, 200, 255]], np.uint8)

PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13
since_13 = pytest.mark.skipif(not PILLOW_13, reason="Pillow reads such files since version 13")


def pixels(contents, channels):
    return decode(io.BytesIO(contents), channels, "it")


def stacked(*planes):
    return np.stack(planes, axis=-1)


def saved(array, suffix, **options):
    """Encode uint8 pixels with Pillow."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, suffix, **options)
    return file.getvalue()


# Values


@pytest.mark.parametrize(
    "contents",
    [
        png(DEEP, GREY),
        png(DEEP, GREY, extra=chunk(b"tRNS", b"\0\0")),
        png(stacked(DEEP, DEEP[::-1]), GREY_ALPHA),
        tiff(DEEP, BLACK_IS_ZERO),
        tiff(DEEP, BLACK_IS_ZERO, ">"),
        tiff(DEEP, BLACK_IS_ZERO, ">", compressed=True),
        tiff(65535 - DEEP, WHITE_IS_ZERO),
        tiff(65535 - DEEP, WHITE_IS_ZERO, compressed=True),
        tiff(DEEP.astype(np.uint32) << 16, BLACK_IS_ZERO),
        pnm(b"P5", DEEP, 65535),
        b"P2 4 2 65535\n" + " ".join(map(str, DEEP.ravel())).encode(),
        saved(DEEP, "JPEG2000"),
    ],
    ids=lambda contents: ascii(contents[:4]),
)
def test_deep_greyscale_keeps_its_upper_bits(contents):
    assert image_channels(io.BytesIO(contents), "it") == 1
    np.testing.assert_array_equal(pixels(contents, 1)[..., 0], UPPER)
    np.testing.assert_array_equal(pixels(contents, 3), stacked(UPPER, UPPER, UPPER))


def test_twelve_bits():
    """Four samples in six bytes: 0x000, 0xFFF, 0x800, 0x7F1."""
    contents = tiff(bytes.fromhex("000fff8007f1"), BLACK_IS_ZERO, bits=12, size=(1, 4))
    assert pixels(contents, 1).tolist() == [[[0], [255], [0x80], [0x7F]]]


@pytest.mark.parametrize(("maxval", "expected"), [(1, [0, 255, 255]), (100, [0, 128, 255]), (1000, [0, 128, 255])])
def test_pgm_is_scaled_by_its_maximum(maxval, expected):
    contents = pnm(b"P5", np.array([[0, (maxval + 1) // 2, maxval]]), maxval)
    assert pixels(contents, 1).ravel().tolist() == expected
    assert image_channels(io.BytesIO(contents), "it") == 1


@pytest.mark.parametrize(
    "contents",
    [
        png(stacked(DEEP, DEEP[::-1], DEEP), RGB),
        png(stacked(DEEP, DEEP[::-1], DEEP, DEEP), RGB_ALPHA),
        tiff(stacked(DEEP, DEEP[::-1], DEEP), TIFF_RGB),
        tiff(stacked(DEEP, DEEP[::-1], DEEP), TIFF_RGB, ">", compressed=True),
        pnm(b"P6", stacked(UPPER, UPPER[::-1], UPPER), 255),
    ],
    ids=lambda contents: ascii(contents[:4]),
)
def test_deep_colour_keeps_its_upper_bits(contents):
    assert image_channels(io.BytesIO(contents), "it") == 3
    np.testing.assert_array_equal(pixels(contents, 3), stacked(UPPER, UPPER[::-1], UPPER))


@pytest.mark.parametrize(
    "contents",
    [
        png(SHALLOW, GREY),
        png(stacked(SHALLOW, SHALLOW[::-1]), GREY_ALPHA),
        tiff(SHALLOW, BLACK_IS_ZERO),
        tiff(255 - SHALLOW, WHITE_IS_ZERO),
        tiff(stacked(SHALLOW, SHALLOW[::-1]), BLACK_IS_ZERO, extra_samples=[UNASSOCIATED]),
        saved(SHALLOW, "TGA"),
    ],
    ids=lambda contents: ascii(contents[:4]),
)
def test_shallow_greyscale(contents):
    assert image_channels(io.BytesIO(contents), "it") == 1
    np.testing.assert_array_equal(pixels(contents, 1)[..., 0], SHALLOW)
    np.testing.assert_array_equal(pixels(contents, 3), stacked(SHALLOW, SHALLOW, SHALLOW))


def test_one_bit_is_black_and_white():
    """In PBM, 1 is black."""
    assert pixels(b"P4 8 1\n\x0f", 1).ravel().tolist() == [255] * 4 + [0] * 4
    assert image_channels(io.BytesIO(b"P4 8 1\n\x0f"), "it") == 1


@pytest.mark.parametrize("alpha", [None, b"\0\x80", b"\xff\0"])
def test_palettes_give_their_colours_whatever_is_transparent(alpha):
    extra = chunk(b"PLTE", bytes([10, 20, 30, 250, 100, 7]))
    contents = png(np.array([[0, 1, 1]], np.uint8), PALETTE, extra + (chunk(b"tRNS", alpha) if alpha else b""))
    assert image_channels(io.BytesIO(contents), "it") == 3
    assert pixels(contents, 3).tolist() == [[[10, 20, 30], [250, 100, 7], [250, 100, 7]]]


def test_alpha_is_dropped_and_premultiplied_colours_are_restored():
    straight = np.array([[[250, 100, 50, 51], [1, 2, 3, 255]]], np.uint8)
    associated = np.array([[[50, 20, 10, 51], [1, 2, 3, 255]]], np.uint8)  # 51 is a fifth of 255
    for contents in (
        png(straight, RGB_ALPHA),
        tiff(straight, TIFF_RGB, extra_samples=[UNASSOCIATED]),
        tiff(associated, TIFF_RGB, extra_samples=[ASSOCIATED]),
    ):
        np.testing.assert_array_equal(pixels(contents, 3), straight[..., :3])


@since_13
def test_premultiplied_greyscale_is_restored():
    grey = tiff(np.array([[[50, 51], [7, 255]]], np.uint8), BLACK_IS_ZERO, extra_samples=[ASSOCIATED])
    assert image_channels(io.BytesIO(grey), "it") == 1
    assert pixels(grey, 1).ravel().tolist() == [250, 7]


def test_grey_of_colour_is_its_luma():
    """ITU-R 601-2: 0.299 red, 0.587 green, 0.114 blue."""
    expected = COLOURS @ np.array([0.299, 0.587, 0.114])
    for contents in (png(COLOURS, RGB), tiff(COLOURS, TIFF_RGB)):
        np.testing.assert_allclose(pixels(contents, 1)[..., 0], expected, atol=0.51)


def test_cmyk():
    ink = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 128, 255, 0], [0, 0, 0, 255], [0, 0, 255, 51]]], np.uint8)
    share = 1 - ink / 255
    expected = 255 * share[..., :3] * share[..., 3:]
    contents = tiff(ink, CMYK)
    np.testing.assert_allclose(pixels(contents, 3), expected, atol=1.01)
    np.testing.assert_allclose(pixels(contents, 1)[..., 0], expected @ np.array([0.299, 0.587, 0.114]), atol=1.5)


def test_ycbcr():
    """JFIF's: red is Y + 1.402 (Cr - 128), blue is Y + 1.772 (Cb - 128)."""
    y, cb, cr = (np.array([[values]], float) for values in (100, 140, 90))
    expected = stacked(
        y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)
    )
    contents = tiff(stacked(y, cb, cr).astype(np.uint8), YCBCR)
    if not PILLOW_13:
        with pytest.raises(Unreadable, match="YCbCr, which needs Pillow 13"):
            pixels(contents, 3)
        return
    np.testing.assert_allclose(pixels(contents, 3), expected, atol=1.01)


@pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow lacks littlecms2")
def test_lab():
    """CIE L*a*b*: lightness alone is grey, and a* is red to green."""
    lab = np.array([[[255, 0, 0], [0, 0, 0], [136, 80, 67]]], np.int16).astype(np.uint8)
    white, black, red = pixels(tiff(lab, LAB), 3)[0].astype(int)
    assert white.min() >= 254
    assert black.max() <= 1
    np.testing.assert_allclose(red, [255, 0, 0], atol=25)
    assert image_channels(io.BytesIO(tiff(lab, LAB)), "it") == 3
    assert pixels(tiff(lab, LAB), 1)[0, 0, 0] >= 254


@pytest.mark.parametrize("suffix", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_is_read(suffix):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 10)]
    file = io.BytesIO()
    frames[0].save(file, suffix, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(pixels(file.getvalue(), 3).astype(int), 200, atol=2)


@pytest.mark.parametrize(
    "suffix", ["BMP", "DIB", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"]
)
def test_every_format_is_read(suffix):
    picture = np.kron(COLOURS, np.ones((8, 8, 1), np.uint8))
    options = dict(lossless=True) if suffix == "WEBP" else dict(quality=100, subsampling=0) if suffix == "JPEG" else {}
    contents = saved(picture, suffix, **options)
    np.testing.assert_allclose(pixels(contents, 3).astype(int), picture, atol=8 if suffix == "JPEG" else 0)
    assert image_channels(io.BytesIO(contents), "it") == 3


# Orientation

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
    for found in (dataset.train[0][0], image_to_input(tmp_path / "val/a/0.jpg", (24, 16, 3), config)):
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


# What is refused


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (tiff(DEEP.astype(np.float32), BLACK_IS_ZERO), "floating-point numbers, which have no fixed range"),
        (tiff(DEEP.astype(np.float32), BLACK_IS_ZERO, ">"), "floating-point numbers, which have no fixed range"),
        (b"Pf 1 1 -1.0\n" + np.float32(0.5).tobytes(), "floating-point numbers, which have no fixed range"),
        (tiff(DEEP.view(np.int16), BLACK_IS_ZERO), "signed numbers, which have no fixed range"),
        (tiff(DEEP.astype(np.int32), BLACK_IS_ZERO, ">"), "signed numbers, which have no fixed range"),
        (tiff(SHALLOW.view(np.int8), BLACK_IS_ZERO), "signed numbers, which have no fixed range"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", f"it is none of {', '.join(FORMATS)}"),
        (b"", "it is none of"),
        (b"no image", "it is none of"),
        (png(SHALLOW, GREY)[:50], "truncated"),
    ],
)
def test_what_cannot_be_read_says_why(contents, reason):
    with pytest.raises(Unreadable, match="cannot read the image it: ") as caught:
        pixels(contents, 1)
    assert reason in str(caught.value).replace("Truncated", "truncated")
    assert "\n" not in str(caught.value)


def test_no_image_file_starts_a_process(tmp_path, monkeypatch):
    """Pillow's EPS plugin runs Ghostscript on every file that begins like an EPS file, whatever its name."""

    def start(*arguments, **_):
        raise AssertionError(f"started {arguments}")

    for name in ("Popen", "check_call", "run", "call"):
        monkeypatch.setattr(subprocess, name, start)
    monkeypatch.setattr(os, "system", start)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "photo.jpg").write_bytes(eps)
    (tmp_path / "photo.eps").write_bytes(eps)
    for name in ("photo.jpg", "photo.eps"):
        with pytest.raises(Unreadable, match="none of JPEG"):
            decode(tmp_path / name, 3, name)
        with pytest.raises(Unreadable, match="none of JPEG"):
            image_channels(tmp_path / name, name)
    with Image.open(tmp_path / "photo.jpg") as image, pytest.raises(AssertionError, match="started"):
        image.load()  # without our list of formats


def test_suffixes_follow_the_formats():
    assert {".jfif", ".jpe", ".jpg", ".png", ".jp2", ".tga", ".pnm", ".mpo", ".webp", ".tiff"} <= SUFFIXES
    assert SUFFIXES.isdisjoint({".eps", ".ps", ".wmf", ".emf", ".pdf", ".fits", ".h5", ".iim", ".mpg", ".txt", ""})
    assert (".avif" in SUFFIXES) == ("AVIF" in Image.OPEN)  # since Pillow 11.3


def test_the_documentation_lists_what_is_read():
    text = (Path(__file__).parents[1] / "docs/images.md").read_text()
    assert set(re.findall(r"`(\.\w+)`", text)) >= SUFFIXES
    assert f"{MAX_PIXELS:,}" in text


def test_truncated_images_are_never_filled_up():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(Unreadable, match="it is not a regular file"):
            decode(path, 3, "it")
    with pytest.raises(Unreadable, match="it is a folder; name the image files in it"):
        decode(tmp_path, 3, "it")


def test_a_missing_file_is_named_once(tmp_path):
    path = tmp_path / "none.png"
    with pytest.raises(Unreadable) as caught:
        decode(path, 3, str(path))
    assert str(caught.value) == f"cannot read the image {path}: No such file or directory"


def test_a_length_that_a_file_claims_takes_no_memory(tmp_path):
    """Pillow reads a chunk of pixels at once: here a file of a few bytes declares a chunk of 2 GiB."""
    path, contents = tmp_path / "claims.png", png(SHALLOW, GREY)
    at = contents.index(b"IDAT")
    path.write_bytes(contents[: at - 4] + (2**31 - 1).to_bytes(4, "big") + contents[at:])
    tracemalloc.start()
    try:
        with contextlib.suppress(Unreadable):
            decode(path, 1, "it")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_pixels_are_limited_before_any_is_decoded(monkeypatch):
    """A PNG of a few bytes declares 8192 x 8193 pixels."""
    contents = png(SHALLOW, GREY)
    side = (8192).to_bytes(4, "big"), (8193).to_bytes(4, "big")
    bomb = contents[:8] + chunk(b"IHDR", b"".join(side) + contents[24:29]) + contents[33:]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(Unreadable, match=r"it has 8192 x 8193 pixels, more than the limit of 67,108,864"):
        pixels(bomb, 1)
    assert MAX_PIXELS == 8192 * 8192


# Greyscale and colour in one dataset


def write(root, kinds, split="train"):
    """Images 0.png, 1.png ... of two classes; `kinds` has a letter for each, "g" for greyscale and "c" for colour."""
    for i, kind in enumerate(kinds):
        path = root / split / "ab"[i % 2] / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.kron(COLOURS, np.full((2, 2, 1), 1, np.uint8))
        path.write_bytes(png(picture, RGB) if kind == "c" else png(np.ascontiguousarray(picture[..., 0]), GREY))


@pytest.mark.parametrize(("kinds", "channels"), [("gccc", 3), ("cccg", 3), ("gggc", 3), ("gggg", 1), ("cccc", 3)])
def test_one_image_in_colour_makes_a_dataset_rgb(tmp_path, kinds, channels):
    write(tmp_path, kinds)
    write(tmp_path, kinds, "val")
    dataset = load_dataset(Data(f"folder:{tmp_path}"))
    assert dataset.image_shape == (6, 4, channels)
    mixed = len(set(kinds)) == 2
    assert len(dataset.notes) == mixed
    if mixed:
        assert "greyscale and colour images are mixed; all are read as RGB" in dataset.notes[0]
        in_colour = [np.ptp(image, axis=-1).max() > 0 for image, _ in dataset.train]
        assert sum(in_colour) == kinds.count("c")


def test_colour_beyond_the_sample_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("train.data.channels.SAMPLE", 3)
    write(tmp_path, "gggggggggcgg")
    paths = sorted(str(path) for path in tmp_path.rglob("*.png"))
    channels, (note,) = folder_channels(paths, paths)
    assert channels == 3
    assert "0009.png" in note


def test_evaluation_images_in_colour_are_told(tmp_path):
    write(tmp_path, "gggg")
    write(tmp_path, "ggcg", "val")
    dataset = load_dataset(Data(f"folder:{tmp_path}"))
    assert dataset.image_shape == (6, 4, 1)
    (note,) = dataset.notes
    assert "colour images for evaluation are read as greyscale" in note
    assert "0002.png" in note


def test_unreadable_files_do_not_decide(tmp_path):
    write(tmp_path, "gggg")
    paths = sorted(str(path) for path in tmp_path.rglob("*.png"))
    for path in paths[:2]:
        with open(path, "wb") as file:
            file.write(b"broken")
    assert folder_channels(paths, paths) == (1, ())
    with pytest.raises(UserError, match=r"cannot read the image .*0000\.png"):
        folder_channels(paths[:1], paths)
