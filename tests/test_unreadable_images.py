"""Files that are not read as images: the message says why, and no process is started for them."""

import contextlib
import os
import re
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.image_files import BLACK_IS_ZERO, DEEP, GREY, SHALLOW, chunk, pixels, png, tiff
from train.data.transforms import Unreadable, decode, image_form
from vit_jax.images import FORMATS, MAX_PIXELS, SUFFIXES


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
            image_form(tmp_path / name, name)
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
