"""Samples of 16 bits and floats, bands, and .npy files are read as they are stored."""

import contextlib
import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.image_files import (
    ASSOCIATED,
    BLACK_IS_ZERO,
    GREY,
    GREY_ALPHA,
    RGB,
    RGB_ALPHA,
    TIFF_RGB,
    UNASSOCIATED,
    WHITE_IS_ZERO,
    png,
    pnm,
    tiff,
)
from vit_jax.images import Unreadable, decode, image_form
from vit_jax.images.samples import converted
from vit_jax.pretrained.preprocessing import Preprocessing

UNSPECIFIED = 0  # kind of an extra sample in TIFF
RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (7, 9, 5), np.uint16)
FLOATS = RNG.normal(0, 1000, (7, 9, 5)).astype(np.float32)

U, F = "uint16", "float32"


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def claiming(shape):
    """A .npy file of 630 bytes of samples that claims another shape."""
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return np.lib.format.MAGIC_PREFIX + b"\1\0" + len(header).to_bytes(2, "little") + header + DEEP.tobytes()


def by_tifffile(array, **options):
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def read(contents, channels, pixels="uint8"):
    return decode(io.BytesIO(contents), channels, "it", pixels)


@pytest.mark.parametrize(
    ("contents", "form", "expected"),
    [
        (png(DEEP[..., 0], GREY), (1, U), DEEP[..., :1]),
        (png(DEEP[..., :2], GREY_ALPHA), (1, U), DEEP[..., :1]),
        (png(DEEP[..., :2], GREY_ALPHA), (1, U), DEEP[..., :2]),
        (png(DEEP[..., :3], RGB), (3, U), DEEP[..., :3]),
        (png(DEEP[..., :4], RGB_ALPHA), (3, U), DEEP[..., :3]),
        (png(DEEP[..., :4], RGB_ALPHA), (3, U), DEEP[..., :4]),
        (pnm(b"P5", DEEP[..., 0], 65535), (1, U), DEEP[..., :1]),
        (tiff(DEEP[..., 0], BLACK_IS_ZERO, ">"), (1, U), DEEP[..., :1]),
        (tiff(65535 - DEEP[..., 0], WHITE_IS_ZERO), (1, U), DEEP[..., :1]),
        (tiff(DEEP[..., :3], TIFF_RGB), (3, U), DEEP[..., :3]),
        (tiff(DEEP[..., :3], TIFF_RGB, ">"), (3, U), DEEP[..., :3]),
        (tiff(DEEP[..., :3], TIFF_RGB, ">", compressed=True), (3, U), DEEP[..., :3]),
        (tiff(DEEP[..., :4], TIFF_RGB, extra_samples=[UNASSOCIATED], compressed=True), (3, U), DEEP[..., :4]),
        (tiff(DEEP[..., :4], TIFF_RGB, extra_samples=[UNSPECIFIED]), (3, U), DEEP[..., :3]),
        (tiff(FLOATS[..., 0], BLACK_IS_ZERO), (1, F), FLOATS[..., :1]),
        (tiff(FLOATS[..., 0], BLACK_IS_ZERO, ">"), (1, F), FLOATS[..., :1]),
        (b"Pf 9 7 -1.0\n" + FLOATS[::-1, :, 0].tobytes(), (1, F), FLOATS[..., :1]),
        (npy(DEEP), (5, U), DEEP),
        (npy(DEEP.astype(">u2")), (5, U), DEEP),
        (npy(np.asfortranarray(DEEP)), (5, U), DEEP),
        (npy(DEEP[..., 0]), (1, U), DEEP[..., :1]),
        (npy((DEEP >> 8).astype(np.uint8)), (5, "uint8"), (DEEP >> 8).astype(np.uint8)),
        (npy(FLOATS), (5, F), FLOATS),
        (npy(FLOATS.astype(np.float64)), (5, F), FLOATS),
    ],
    ids=lambda value: "",
)
def test_samples_are_read_exactly(tmp_path, contents, form, expected):
    (tmp_path / "file").write_bytes(contents)
    channels = expected.shape[2]
    for file in (io.BytesIO(contents), tmp_path / "file"):
        assert image_form(file, "it") == form
    found = decode(tmp_path / "file", channels, "it", form[1])
    assert found.dtype == form[1]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(read(contents, channels, form[1]), expected)
    if form[1] == U:  # Pillow itself reduces these
        np.testing.assert_array_equal(read(contents, channels), expected >> 8)


@pytest.mark.parametrize(
    ("array", "options", "form"),
    [
        (DEEP, dict(planarconfig="contig"), (5, U)),
        (DEEP, dict(planarconfig="contig", tile=(16, 16), compression="zlib"), (5, U)),
        (DEEP, dict(planarconfig="contig", compression="zlib", predictor=True, bigtiff=True), (5, U)),
        (DEEP, dict(planarconfig="separate"), (5, U)),
        (DEEP[..., :3], dict(planarconfig="separate", photometric="rgb"), (3, U)),
        (DEEP[..., :2], dict(planarconfig="contig", extrasamples=["unassalpha"]), (1, U)),
        (DEEP.astype(np.uint8), dict(planarconfig="contig", byteorder=">"), (5, "uint8")),
        (DEEP.astype(np.uint8), dict(planarconfig="contig", photometric="rgb"), (5, "uint8")),
        (FLOATS, dict(planarconfig="contig"), (5, F)),
        (FLOATS.astype(np.float64), dict(planarconfig="separate"), (5, F)),
    ],
    ids=lambda value: "",
)
def test_bands_of_tiff_are_read_exactly(array, options, form):
    planes = np.moveaxis(array, -1, 0) if options["planarconfig"] == "separate" else array
    contents = by_tifffile(planes, **{"photometric": "minisblack", **options})
    assert image_form(io.BytesIO(contents), "it") == form
    np.testing.assert_array_equal(read(contents, array.shape[2], form[1]), array)
    np.testing.assert_array_equal(read(contents, form[0], form[1]), array[..., : form[0]])


def test_a_sample_beside_rgb_is_a_band_if_asked_for():
    pytest.importorskip("tifffile")
    contents = tiff(DEEP[..., :4], TIFF_RGB, extra_samples=[UNSPECIFIED])
    np.testing.assert_array_equal(read(contents, 4, U), DEEP[..., :4])


def test_bands_need_tifffile(monkeypatch):
    contents = tiff(DEEP, BLACK_IS_ZERO, extra_samples=[UNSPECIFIED] * 4)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(Unreadable, match=r'cannot read this TIFF, and tifffile is not.*pip install "vit-jax\[data\]"'):
        image_form(io.BytesIO(contents), "it")


def test_types_keep_white_and_black():
    for there, white in (("uint8", 255), ("uint16", 65535)):
        levels = np.array([0, white], there)
        for pixels, expected in (("uint8", 255), ("uint16", 65535), ("float32", 1)):
            assert converted(levels, pixels).tolist() == [0, expected]
            assert converted(levels, pixels).dtype == pixels
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(converted(converted(every, "uint16"), "uint8"), every)
    twelve = tiff(bytes.fromhex("000fff8007f1"), BLACK_IS_ZERO, bits=12, size=(1, 4))
    assert read(twelve, 1, "uint16").ravel().tolist() == [0, 65535, 0x8008, 0x7F17]


def test_deep_colours_are_converted():
    """Grey is ITU-R 601-2's luma; alpha that is missing is opaque, and premultiplied colours are restored."""
    rgb = png(DEEP[..., :3], RGB)
    luma = DEEP[..., :3] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read(rgb, 1, U)[..., 0], luma, atol=0.51)
    np.testing.assert_array_equal(read(rgb, 4, U)[..., 3], 65535)
    grey = png(DEEP[..., 0], GREY)
    np.testing.assert_array_equal(read(grey, 3, U), np.repeat(DEEP[..., :1], 3, -1))
    half = tiff(np.array([[[1000, 2000, 40000, 32768]]], np.uint16), TIFF_RGB, extra_samples=[ASSOCIATED])
    assert read(half, 3, U).tolist() == [[[2000, 4000, 65535]]]


def test_alpha_is_a_channel_if_asked_for():
    straight = np.array([[[250, 100, 50, 51], [1, 2, 3, 0]]], np.uint8)
    np.testing.assert_array_equal(read(png(straight, RGB_ALPHA), 4), straight)
    np.testing.assert_array_equal(read(png(straight[..., :2], GREY_ALPHA), 2), straight[..., :2])
    assert read(png(straight[..., :3], RGB), 4)[..., 3].tolist() == [[255, 255]]


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (npy(np.zeros(4, np.uint8)), r"its shape is \(4,\): expected \(height, width\)"),
        (npy(np.zeros((0, 4, 3), np.uint8)), "it has no pixels"),
        (npy(np.zeros((4, 4), np.int64)), "signed numbers"),
        (npy(np.zeros((4, 4), bool)), "of type bool: expected uint8, uint16 or float32"),
        (npy(np.array([[None]])), "of type object"),
        (npy(np.zeros((2, 2), "u4,u4")), "of type .*expected uint8"),
        (npy(DEEP)[:-1], "truncated: 629 of 630 bytes"),
        (claiming("(8000, 8000, 3)"), "truncated: 630 of 384,000,000 bytes"),
        (claiming("(8000, 8000, 9)"), "take 1,152,000,000 bytes, more than 1,073,741,824"),
        (claiming("(8193, 8192, 1)"), "it has 8192 x 8193 pixels, more than the limit"),
        (claiming("(-1, 9**99, 5)"), "."),
        (claiming("(10**99, 9, 5)"), "."),
        (claiming("()" * 9999), "."),
        (np.lib.format.MAGIC_PREFIX + b"\x09\0", "version 9.0: expected 1.0 or 2.0"),
        (npy(np.full((2, 2), np.nan)), "not finite"),
        (npy(np.full((2, 2), 1e300)), "not finite"),
        (tiff(np.full((2, 2), np.inf, np.float32), BLACK_IS_ZERO), "not finite"),
    ],
    ids=lambda value: "",
)
def test_what_is_no_image_says_why(contents, reason):
    with pytest.raises(Unreadable, match=f"cannot read the image it: .*{reason}") as caught:
        read(contents, 1, "float32")
    assert "\n" not in str(caught.value)


def test_other_bands_are_refused():
    for contents in (npy(DEEP), png(DEEP[..., :3], RGB)):
        with pytest.raises(Unreadable, match=r"it has [53] channels: expected 6"):
            read(contents, 6, U)


def test_channels_are_the_last_axis():
    contents = npy(np.zeros((5, 64, 48), np.uint8))
    with pytest.raises(Unreadable, match=r"expected \(height, width, channels\), but this looks like channels first"):
        image_form(io.BytesIO(contents), "it")
    assert read(contents, 48).shape == (5, 64, 48)  # the number of channels is given
    strip = npy(np.zeros((3, 64, 4), np.uint8))  # so few channels are not a width
    assert image_form(io.BytesIO(strip), "it").channels == 4


def test_an_expanding_part_of_a_tiff_is_refused():
    """A deflated strip that would expand to a hundred times the pixels of the image."""
    pytest.importorskip("tifffile")
    tall = np.zeros((700, 9, 5), np.uint16)
    contents = tiff(tall, BLACK_IS_ZERO, extra_samples=[UNSPECIFIED] * 4, compressed=True)
    short = contents.replace((700).to_bytes(4, "little"), (7).to_bytes(4, "little"))
    assert read(contents, 5, U).shape == (700, 9, 5)
    with pytest.raises(Unreadable, match="expands to more than 630 bytes"):
        read(short, 5, U)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_read_or_refused(seed):
    """Damage of headers, tags and samples."""
    rng = np.random.default_rng(seed)
    for whole in (
        npy(DEEP),
        tiff(DEEP, BLACK_IS_ZERO, extra_samples=[UNSPECIFIED] * 4, compressed=True),
        tiff(FLOATS, BLACK_IS_ZERO, extra_samples=[UNSPECIFIED] * 4),
        png(DEEP[..., :3], RGB),
    ):
        refused = 0
        for _ in range(12):
            contents = bytearray(whole)
            start = 0 if rng.random() < 0.5 else len(contents) - 250
            for at in rng.integers(start, start + 120, 3):
                contents[at] = rng.integers(256)
            with contextlib.suppress(Unreadable):
                read(bytes(contents), 5, "float32")
                continue
            refused += 1
        assert refused


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(tmp_path, orientation):
    """In every format with EXIF, for eight and sixteen bits, and for published weights."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    colours = (DEEP[:6, :4, :3] >> 8).astype(np.uint8)
    for suffix, picture in (
        *((suffix, colours) for suffix in ("jpg", "png", "tif", "webp")),
        ("png", DEEP[:6, :4, 0]),
        ("tif", DEEP[:6, :4, 0]),
    ):
        path = tmp_path / f"photo.{suffix}"
        Image.fromarray(picture).save(path, exif=exif, **(dict(lossless=True) if suffix == "webp" else {}))
        with Image.open(io.BytesIO(path.read_bytes())) as image:  # Pillow 13.0 misreads paths of 16-bit TIFF
            expected = np.asarray(ImageOps.exif_transpose(image))
        pixels = str(picture.dtype)
        channels = 3 if picture.ndim == 3 else 1
        np.testing.assert_array_equal(decode(path, channels, "it", pixels).squeeze(), expected)
        if channels == 3:
            prepared = Preprocessing(expected.shape[:2], 1.0).pixels(path)
            np.testing.assert_array_equal(prepared, expected)
