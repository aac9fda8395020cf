"""Decoding gives the right pixel values for every kind of file."""

import io

import numpy as np
import PIL
import pytest
from PIL import Image, features

from tests.image_files import (
    ASSOCIATED,
    BLACK_IS_ZERO,
    CMYK,
    COLOURS,
    DEEP,
    GREY,
    GREY_ALPHA,
    LAB,
    PALETTE,
    RGB,
    RGB_ALPHA,
    SHALLOW,
    TIFF_RGB,
    UNASSOCIATED,
    UPPER,
    WHITE_IS_ZERO,
    YCBCR,
    chunk,
    pixels,
    png,
    pnm,
    saved,
    stacked,
    tiff,
)
from train.data.transforms import Unreadable, image_form

PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13
since_13 = pytest.mark.skipif(not PILLOW_13, reason="Pillow reads such files since version 13")


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
    assert image_form(io.BytesIO(contents), "it").channels == 1
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
    assert image_form(io.BytesIO(contents), "it").channels == 1


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
    assert image_form(io.BytesIO(contents), "it").channels == 3
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
    assert image_form(io.BytesIO(contents), "it").channels == 1
    np.testing.assert_array_equal(pixels(contents, 1)[..., 0], SHALLOW)
    np.testing.assert_array_equal(pixels(contents, 3), stacked(SHALLOW, SHALLOW, SHALLOW))


def test_one_bit_is_black_and_white():
    """In PBM, 1 is black."""
    assert pixels(b"P4 8 1\n\x0f", 1).ravel().tolist() == [255] * 4 + [0] * 4
    assert image_form(io.BytesIO(b"P4 8 1\n\x0f"), "it").channels == 1


@pytest.mark.parametrize("alpha", [None, b"\0\x80", b"\xff\0"])
def test_palettes_give_their_colours_whatever_is_transparent(alpha):
    extra = chunk(b"PLTE", bytes([10, 20, 30, 250, 100, 7]))
    contents = png(np.array([[0, 1, 1]], np.uint8), PALETTE, extra + (chunk(b"tRNS", alpha) if alpha else b""))
    assert image_form(io.BytesIO(contents), "it").channels == 3
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
    assert image_form(io.BytesIO(grey), "it").channels == 1
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
    assert image_form(io.BytesIO(tiff(lab, LAB)), "it").channels == 3
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
    assert image_form(io.BytesIO(contents), "it").channels == 3
