"""Decode image files: the formats, colours, channels and types of samples that are read, and how. Needs Pillow.

Arrays of pixels are (h, w, c), with samples uint8, uint16 or float32.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vit_jax.images import pillow
from vit_jax.images.bands import TiffBands, needs_tifffile
from vit_jax.images.npy import MAGIC, NpyImage
from vit_jax.images.open_image import OpenImage, Reader, Unreadable, explained
from vit_jax.images.pillow import FORMATS, window
from vit_jax.images.samples import MAX_PIXELS, WHITE, Form, Pixels

__all__ = ["FORMATS", "MAX_PIXELS", "SUFFIXES", "WHITE", "File", "Form", "OpenImage", "Pixels", "Unreadable", "as_rgb"]
__all__ += ["decode", "image_form", "opened", "window"]

File = str | os.PathLike | io.BytesIO

SUFFIXES = pillow.SUFFIXES | {".npy"}
SMALL = 2**24  # bytes of the largest file that is read at once


def image_form(file: File, name: str) -> Form:
    """Number of channels and type of samples of an image, from its header.

    Args:
        file: Path or contents of the file.
        name: Name of the file in error messages.

    Returns:
        1 channel for greyscale, 3 for colour (palettes, CMYK and colour with alpha too), otherwise the number of bands.
        The type is uint16 for integers of more than 8 bits, and float32 for all floats.

    Raises:
        Unreadable: If the header is not that of a supported image.
    """
    with explained(name), _reader_of(file, None) as reader:
        return reader.form()


def decode(file: File, channels: int, name: str, pixels: Pixels = "uint8") -> np.ndarray:
    """Decode an image at its own size, upright.

    Args:
        file: Path or contents of the file.
        channels: As of `opened`.
        name: Name of the file in error messages.
        pixels: Type of the samples.

    Returns:
        Pixels (h, w, channels).

    Raises:
        Unreadable: As by `opened` and `OpenImage`.
    """
    with opened(file, channels, name, pixels) as image:
        return np.asarray(image.decoded)


@contextlib.contextmanager
def opened(file: File, channels: int, name: str, pixels: Pixels = "uint8") -> Iterator[OpenImage]:
    """Open and check an image without decoding it.

    Palettes are resolved, and of several frames or pages only the first is read. Integers become `pixels` so that white
    stays white: as uint8 the upper 8 bits, as float32 0..1. Floats remain as they are.

    Args:
        file: Path or contents of the file.
        channels: 1 for greyscale, 3 for RGB, both without alpha; 2 and 4 for those with alpha; otherwise the number of
            bands, which the file must have.
        name: Name of the file in error messages.
        pixels: Type of the samples.

    Raises:
        Unreadable: If the header is not that of a supported image.
    """
    with contextlib.ExitStack() as stack:
        with explained(name):
            reader = stack.enter_context(_reader_of(file, channels))
        yield OpenImage(reader, Form(channels, pixels), name)


def as_rgb(image: str | os.PathLike | Image.Image | np.ndarray) -> Image.Image:
    """Return an RGB image of Pillow.

    Args:
        image: Path of a file, which is decoded as by `decode`; an image of Pillow, which is converted as by its
            `convert("RGB")` and not rotated; or pixels, uint8 (h, w, 3).

    Raises:
        Unreadable: If the file is not a whole image of a supported format.
        ValueError: For an array of another type or shape.
    """
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    if isinstance(image, str | os.PathLike):
        return Image.fromarray(decode(image, 3, os.fspath(image)))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"image of shape {pixels.shape}, {pixels.dtype}: expected uint8 (height, width, 3)")
    return Image.fromarray(pixels)


@contextlib.contextmanager
def _reader_of(file: File, channels: int | None) -> Iterator[Reader]:
    """Open and check an image. `channels` is their number that will be read, None if unknown."""
    with (
        contextlib.nullcontext(file) if isinstance(file, io.BytesIO) else _open_regular(file) as stream,
        _reader(stream, channels) as reader,
    ):
        yield reader


def _reader(stream: io.BufferedIOBase, channels: int | None) -> contextlib.AbstractContextManager:
    """The reader of a file, chosen by its contents."""
    is_npy = stream.read(len(MAGIC)) == MAGIC
    stream.seek(0)
    if is_npy:
        return contextlib.nullcontext(NpyImage(stream))
    is_for_tifffile = needs_tifffile(stream, channels)
    stream.seek(0)
    return contextlib.nullcontext(TiffBands(stream)) if is_for_tifffile else pillow.opened(stream)


class _BoundedReader(io.BufferedReader):
    """A file whose `read` never allocates more than the rest of the file, whatever length a damaged image claims."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, count: int | None = -1) -> bytes:
        is_small = count is None or count < io.DEFAULT_BUFFER_SIZE
        return super().read(count if is_small else min(count, max(0, self._size - self.tell())))


def _open_regular(path: str | os.PathLike) -> io.BufferedIOBase:
    """Open a file for reading. Raises OSError for a pipe or a device, where reading may never end."""
    there = os.stat(path)
    if stat.S_ISDIR(there.st_mode):
        raise OSError("it is a folder; name the image files in it")
    if not stat.S_ISREG(there.st_mode):
        raise OSError("it is not a regular file")
    if there.st_size > SMALL:
        return _BoundedReader(path)
    with open(path, "rb") as file:  # Pillow reads some bytes at a time, and each call of `_BoundedReader` costs a µs
        return io.BytesIO(file.read())
