"""Decode image files: the formats, colours and sizes that are read, and how. Needs Pillow.

Arrays of pixels are uint8 (h, w, c).
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

File = str | os.PathLike | io.BytesIO

# Formats that Pillow decodes safely within this process. Of the others, some start a program (EPS starts Ghostscript),
# some open embedded files of any format (IPTC), and some decode in slow Python what expands from a few bytes (QOI).
# TGA is last because its files have no signature.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "PCX", "SGI", "SUN")
FORMATS += ("TGA",)
Image.init()
PLUGINS = tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF needs Pillow 11.3; JPEG's plugin reads MPO
SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)

# Decoding takes 11 to 25 bytes a pixel, depending on the format, in each thread: up to 1.6 GiB.
MAX_PIXELS = 2**26

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
WHITE_IS_ZERO, YCBCR = 0, 6  # values of TIFF's tag PhotometricInterpretation
UNSIGNED = (1,)  # the value of TIFF's tag SampleFormat for unsigned integers
TRANSPOSE = {  # by the value of EXIF's tag Orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(ValueError):
    """A file that is not a whole image of a supported format."""


def image_channels(file: File, name: str) -> int:
    """Number of channels of an image, from its header.

    Args:
        file: Path or contents of the file.
        name: Name of the file in error messages.

    Returns:
        1 for a greyscale image of any depth, 3 for any other.

    Raises:
        Unreadable: If the header is not that of a supported image.
    """
    with _opened(file, name) as image:
        return 1 if _is_grey(image) else 3


def decode(file: File, channels: int, name: str) -> np.ndarray:
    """Decode an image at its own size, rotated according to its EXIF orientation.

    Palettes are resolved, alpha is dropped, samples of more than 8 bits are reduced to their upper 8 bits, and of
    several frames or pages only the first is read.

    Args:
        file: Path or contents of the file.
        channels: 1 for greyscale, 3 for RGB.
        name: Name of the file in error messages.

    Returns:
        Pixels, uint8 (h, w, channels).

    Raises:
        Unreadable: If the file is not a whole image of a supported format.
    """
    with _opened(file, name) as image:
        image.load()
        turn = TRANSPOSE.get(_orientation(image))
        image = _converted(image, "L" if channels == 1 else "RGB")
        pixels = np.asarray(image if turn is None else image.transpose(turn))
        return pixels.reshape(*pixels.shape[:2], channels)


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


def window(image: Image.Image, top: int, left: int, size: tuple[int, int], fill: int | tuple[int, ...]) -> Image.Image:
    """Crop `size` = (height, width) at `top` and `left`. Pixels outside of the image get the colour `fill`."""
    canvas = Image.new(image.mode, size[::-1], fill)
    canvas.paste(image, (-left, -top))
    return canvas


@contextlib.contextmanager
def _opened(file: File, name: str) -> Iterator[Image.Image]:
    """Open and check an image without decoding it. Converts any exception, also of the body, to Unreadable."""
    try:
        with (
            contextlib.nullcontext(file) if isinstance(file, io.BytesIO) else _open_regular(file) as stream,
            Image.open(stream, formats=PLUGINS) as image,
        ):
            _check(image)
            yield image
    except UnidentifiedImageError as error:
        raise Unreadable(f"cannot read the image {name}: it is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, MemoryError and more
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"cannot read the image {name}: {reason}") from error


class _BoundedReader(io.BufferedReader):
    """A file whose `read` never allocates more than the rest of the file, whatever length a damaged image claims."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, count: int | None = -1) -> bytes:
        is_small = count is None or count < io.DEFAULT_BUFFER_SIZE
        return super().read(count if is_small else min(count, max(0, self._size - self.tell())))


def _open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading. Raises OSError for a pipe or a device, where reading may never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise OSError("it is a folder; name the image files in it")
    if not stat.S_ISREG(mode):
        raise OSError("it is not a regular file")
    return _BoundedReader(path)


def _check(image: Image.Image) -> None:
    """Raises ValueError for an image that is too large, has samples without a fixed range, or would be misread."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")
    if image.mode == "F":
        raise ValueError("its samples are floating-point numbers, which have no fixed range")
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if {*tags.get(TiffImagePlugin.SAMPLEFORMAT, UNSIGNED)} != {*UNSIGNED}:
        raise ValueError("its samples are signed numbers, which have no fixed range")
    is_ycbcr = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == YCBCR
    if is_ycbcr and image.mode == "RGB" and image.tile[0][0] == "raw":
        raise ValueError("its colours are YCbCr, which needs Pillow 13")  # older versions misread it as RGB


def _is_grey(image: Image.Image) -> bool:
    """Whether an image that is not yet decoded is greyscale. Pillow reads 16-bit grey with alpha as RGBA."""
    return image.mode in GREY_MODES or any(tile[3] == "LA;16B" for tile in image.tile)


def _orientation(image: Image.Image) -> int:
    """EXIF's Orientation of a decoded image; 1 (upright) if it is missing or EXIF is damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in _opened
        return 1


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """A decoded image in `mode`, L or RGB."""
    image.info.pop("transparency", None)  # a colour or palette entry that would become alpha
    if image.mode.startswith("I"):
        image = _upper_bits(image)
    elif image.mode in ("La", "RGBa"):  # premultiplied by alpha
        image = image.convert(image.mode.upper())
    elif image.mode not in GREY_MODES:  # Pillow converts LAB only to RGB
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _upper_bits(image: Image.Image) -> Image.Image:
    """The upper 8 bits of greyscale samples, as Pillow itself reduces 16-bit RGB."""
    samples, bits = np.asarray(image), 16  # Pillow scales any depth up to 16 to 16 bits, except in TIFF
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if tags:
        (bits,) = tags[TiffImagePlugin.BITSPERSAMPLE]
    if bits == 32:
        samples = samples.view(np.uint32)  # Pillow returns int32
    samples = (samples >> (bits - 8)).astype(np.uint8)
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO  # Pillow inverts only 8 bits
    return Image.fromarray(255 - samples if inverted else samples)
