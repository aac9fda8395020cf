"""Read image files with Pillow: the formats, and how their colours and samples are resolved."""

import contextlib
import io
import sys
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from vit_jax.images.samples import Form, as_pixels, check_size, converted, straight, widened

# Formats that Pillow decodes safely within this process. Of the others, some start a program (EPS starts Ghostscript),
# some open embedded files of any format (IPTC), and some decode in slow Python what expands from a few bytes (QOI).
# TGA is last because its files have no signature.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "PCX", "SGI", "SUN")
FORMATS += ("TGA",)
Image.init()
PLUGINS = tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF needs Pillow 11.3; JPEG's plugin reads MPO
SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by number of channels
GREY_ALPHA = "LA;16B"  # 16-bit greyscale with alpha in PNG, which Pillow reads as RGBA of 8 bits
TRANSPOSE = Image.Transpose
TURNS = {  # what makes an image upright, by EXIF orientation
    2: TRANSPOSE.FLIP_LEFT_RIGHT,
    3: TRANSPOSE.ROTATE_180,
    4: TRANSPOSE.FLIP_TOP_BOTTOM,
    5: TRANSPOSE.TRANSPOSE,
    6: TRANSPOSE.ROTATE_270,
    7: TRANSPOSE.TRANSVERSE,
    8: TRANSPOSE.ROTATE_90,
}
WHITE_IS_ZERO, YCBCR = 0, 6  # values of TIFF's tag PhotometricInterpretation
UNSIGNED, FLOATS = 1, 3  # values of TIFF's tag SampleFormat


class PillowImage:
    """An image that Pillow has opened and this class has checked, but that is not decoded."""

    def __init__(self, stream: io.BufferedIOBase, image: Image.Image):
        self._stream, self._image = stream, image
        self._rawmode, self._sides = _rawmode(image), image.size
        _check(image)

    @property
    def orientation(self) -> int:
        """EXIF's Orientation; 1 (upright) if it is missing or damaged. Only a JPEG has it before it is decoded."""
        try:
            return self._image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # Pillow raises OSError, SyntaxError, ValueError, MemoryError and more
            return 1

    @property
    def is_jpeg(self) -> bool:
        return self._image.format in ("JPEG", "MPO")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a JPEG, upright: EXIF is before its pixels."""
        return self._sides if self.orientation in (5, 6, 7, 8) else self._sides[::-1]

    def reduce(self, scale: float) -> int:
        """Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, but not below 1 / `scale`, and return the divisor.

        Sides are rounded up. An image that must be turned or flipped is reduced only without a remainder, which would
        move to the top or left.
        """
        width, height = self._sides
        is_whole = lambda divisor: self.orientation not in TURNS or width % divisor == height % divisor == 0
        divisor = max((divisor for divisor in (2, 4, 8) if divisor <= scale and is_whole(divisor)), default=1)
        self._image.draft(None, (max(1, width // divisor), max(1, height // divisor)))
        return divisor

    def form(self) -> Form:
        is_grey = self._image.mode in GREY_MODES or self._rawmode == GREY_ALPHA
        return Form(1 if is_grey else 3, self._pixels)

    def read(self, channels: int, pixels: str) -> np.ndarray | Image.Image:
        """The samples, uint8 if `pixels` is; otherwise in the type of the file. RGB of 8 bits remains a picture."""
        is_deep = pixels != "uint8" and self._pixels == "uint16"
        if is_deep and not self._image.mode.startswith("I"):
            return _with_alpha(self._deep_colour(), channels)
        self._image.load()
        if self._image.mode == "F":
            return as_pixels(np.asarray(self._image)[..., None])
        if is_deep:
            return _with_alpha(_deep_grey(self._image)[..., None], channels)
        mode = MODES.get(channels) or MODES[self.form().channels]
        picture = _converted(self._image, mode)
        if mode == "RGB" and channels == 3 and pixels == "uint8":
            return picture
        return np.asarray(picture).reshape(*self._image.size[::-1], len(mode))

    @property
    def _pixels(self) -> str:
        if self._image.mode == "F":
            return "float32"
        is_deep = self._rawmode in (GREY_ALPHA, *SWAPPED) or self._image.mode.startswith("I")
        return "uint16" if is_deep else "uint8"

    def _deep_colour(self) -> np.ndarray:
        """16-bit samples, of which Pillow keeps the upper 8 bits: decoded once more, it gives the lower ones."""
        self._stream.seek(0)
        contents = self._stream.read()  # before Pillow decodes, because libtiff moves the position of the file
        self._image.load()
        if self._rawmode == GREY_ALPHA:  # the four bytes of a pixel as if they were four channels
            return _decoded_as("RGBA", contents).view(">u2").astype(np.uint16)
        is_premultiplied = self._rawmode.startswith("RGBa")
        rawmode = self._rawmode.upper()  # Pillow would divide the upper 8 bits by alpha
        upper = _decoded_as(rawmode, contents) if is_premultiplied else np.asarray(self._image)
        samples = upper.astype(np.uint16) << 8 | _decoded_as(SWAPPED[rawmode], contents)
        return straight(samples) if is_premultiplied else samples


def _decoded_as(rawmode: str, contents: bytes) -> np.ndarray:
    """The image in a file as if its samples were of another kind."""
    with Image.open(io.BytesIO(contents), formats=PLUGINS) as image:
        replaced = lambda args: rawmode if isinstance(args, str) else (rawmode, *args[1:])
        image.tile = [tile._replace(args=replaced(tile.args)) for tile in image.tile]
        image.load()
        return np.ascontiguousarray(image)


def _swapped() -> dict[str, str]:
    """For each of Pillow's names of 16-bit colours in a file, that of the other byte order."""
    orders = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    return {f"{c};16{order}": f"{c};16{orders[order]}" for c in ("RGB", "RGBA", "RGBa", "RGBX") for order in orders}


SWAPPED = _swapped()


@contextlib.contextmanager
def opened(stream: io.BufferedIOBase) -> Iterator[PillowImage]:
    """Open and check an image without decoding it."""
    with Image.open(stream, formats=PLUGINS) as image:
        yield PillowImage(stream, image)


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    """Turn and flip a picture as its EXIF orientation says; unknown ones leave it as it is."""
    turn = next((method for number, method in TURNS.items() if number == orientation), None)
    return picture if turn is None else picture.transpose(turn)


def window(image: Image.Image, top: int, left: int, size: tuple[int, int], fill: int | float | tuple[int, ...]):
    """Crop `size` = (height, width) at `top` and `left`. Pixels outside of the image get the colour `fill`."""
    canvas = Image.new(image.mode, size[::-1], fill)
    canvas.paste(image, (-left, -top))
    return canvas


def _rawmode(image: Image.Image) -> str:
    """Pillow's name of the samples in a PNG or TIFF; empty for other formats."""
    args = image.tile[0][3] if image.format in ("PNG", "TIFF") and image.tile else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _check(image: Image.Image) -> None:
    """Raises ValueError for an image that is too large, has signed samples, or would be misread."""
    check_size(*image.size, 1)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if not {*tags.get(TiffImagePlugin.SAMPLEFORMAT, (UNSIGNED,))} <= {UNSIGNED, FLOATS}:
        raise ValueError("its samples are signed numbers, which have no fixed range")
    is_ycbcr = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == YCBCR
    if is_ycbcr and image.mode == "RGB" and image.tile[0][0] == "raw":
        raise ValueError("its colours are YCbCr, which needs Pillow 13")  # older versions misread it as RGB


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """A decoded image in one of `MODES`. Without alpha in `mode` it is dropped."""
    if not mode.endswith("A"):
        image.info.pop("transparency", None)  # a colour or palette entry that would become alpha
    if image.mode.startswith("I"):
        image = Image.fromarray(converted(_deep_grey(image), "uint8"))
    elif image.mode in ("La", "RGBa"):  # premultiplied by alpha
        image = image.convert(image.mode.upper())
    elif image.mode not in (*GREY_MODES, mode) and not mode.endswith("A"):  # Pillow converts LAB only to RGB
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _deep_grey(image: Image.Image) -> np.ndarray:
    """Greyscale samples of more than 8 bits as uint16 (h, w)."""
    samples, bits = np.asarray(image), 16  # Pillow scales any depth up to 16 to 16 bits, except in TIFF
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if tags:
        (bits,) = tags[TiffImagePlugin.BITSPERSAMPLE]
    if bits == 32:
        samples = samples.view(np.uint32)  # Pillow returns int32
    samples = widened(samples, bits)
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO  # Pillow inverts only 8 bits
    return 65535 - samples if inverted else samples


def _with_alpha(samples: np.ndarray, channels: int) -> np.ndarray:
    """Samples with alpha if `channels` counts it (2 or 4), opaque if the file has none; otherwise without alpha."""
    given = samples.shape[2]
    colours, alpha = (samples, None) if given in (1, 3) else (samples[..., :-1], samples[..., -1:])
    if channels not in (2, 4):
        return colours
    if channels == 4 and colours.shape[2] == 1:
        colours = np.repeat(colours, 3, axis=2)
    opaque = np.full_like(colours[..., :1], 65535)
    return np.concatenate([colours, opaque if alpha is None else alpha], axis=-1)
