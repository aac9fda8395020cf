"""Image files, written byte by byte, so that their content does not depend on the library that is tested."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from train.data.transforms import decode

SHORT, LONG = 3, 4  # types of TIFF's tags
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG
WHITE_IS_ZERO, BLACK_IS_ZERO, TIFF_RGB, CMYK, YCBCR, LAB = 0, 1, 2, 5, 6, 8  # photometric interpretations of TIFF
ASSOCIATED, UNASSOCIATED = 1, 2  # kinds of alpha in TIFF

DEEP = np.array([[0, 255, 256, 0x1234], [0x8000, 0xFE00, 0xFF00, 0xFFFF]], np.uint16)
UPPER = np.array([[0, 0, 1, 0x12], [0x80, 0xFE, 0xFF, 0xFF]], np.uint8)
COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]], [[1, 2, 3], [200, 100, 50]]], np.uint8)
SHALLOW = np.array([[0, 1, 127], [128, 200, 255]], np.uint8)


def png(pixels, colour_type, extra=b""):
    """A PNG of uint8 or uint16 samples (h, w) or (h, w, c). `extra`: chunks before the pixels."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour_type, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def chunk(kind, data):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def ifd(order, tags, start):
    """A TIFF directory at offset `start`, from {tag: (type, values)}, followed by the data that it points to."""
    end = start + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers)
        if len(packed) > 4:
            packed, values = struct.pack(f"{order}I", end + len(values)), values + packed
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    return struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0) + values


def tiff(pixels, photometric, order="<", extra_samples=(), compressed=False, bits=None, size=None, **tags):
    """An uncompressed or deflated TIFF of (h, w) or (h, w, c) samples in their own type; `order` is "<" or ">".

    With `bits` and `size` (height, width), `pixels` are bytes that are packed already.
    """
    if bits is None:
        size, bits = pixels.shape[:2], 8 * pixels.itemsize
        channels = pixels[0, 0].size
        kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    else:
        channels, kind, data = 1, 1, pixels
    if compressed:
        data = zlib.compress(data)
    values = {
        256: (LONG, [size[1]]),
        257: (LONG, [size[0]]),
        258: (SHORT, [bits] * channels),
        259: (SHORT, [8 if compressed else 1]),
        262: (SHORT, [photometric]),
        273: (LONG, [8]),
        277: (SHORT, [channels]),
        278: (LONG, [size[0]]),
        279: (LONG, [len(data)]),
        339: (SHORT, [kind] * channels),
    }
    if extra_samples:
        values[338] = (SHORT, list(extra_samples))
    if "orientation" in tags:
        values[274] = (SHORT, [tags["orientation"]])
    start = 8 + len(data) + len(data) % 2
    signature = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return signature + struct.pack(f"{order}I", start) + data.ljust(start - 8, b"\0") + ifd(order, values, start)


def pnm(magic, pixels, maxval):
    """A PGM (P5) or PPM (P6) of numbers up to `maxval`."""
    height, width = pixels.shape[:2]
    return b"%s %d %d %d\n" % (magic, width, height, maxval) + pixels.astype(">u2" if maxval > 255 else "u1").tobytes()


def exif(orientation):
    """An EXIF block with only an orientation."""
    return b"Exif\0\0II*\0\x08\0\0\0" + ifd("<", {274: (SHORT, [orientation])}, 8)


def with_exif(jpeg, block):
    """A JPEG file with an EXIF block."""
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def pixels(contents, channels):
    """Decode a file, given as bytes, to (h, w, channels)."""
    return decode(io.BytesIO(contents), channels, "it")


def stacked(*planes):
    """Pixels from one array for each channel."""
    return np.stack(planes, axis=-1)


def saved(array, suffix, **options):
    """Encode uint8 pixels with Pillow."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, suffix, **options)
    return file.getvalue()
