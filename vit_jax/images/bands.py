"""Read TIFF files that Pillow cannot read or would misread, with tifffile: bands, and deep samples in planes."""

import io
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from vit_jax.images.samples import MAX_BYTES, Form, as_pixels, check_size, pixels_of, straight, widened

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GREY, RGB = 1, 2  # values of the tag PhotometricInterpretation; the number of colours is 1 or 3
UNSPECIFIED, ASSOCIATED = 0, 1  # values of the tag ExtraSamples; the latter is premultiplied alpha
PLANES = 2  # the value of the tag PlanarConfiguration for one plane per channel
DEFLATE = (8, 32946)
COMPRESSIONS = (1, 5, 32773, *DEFLATE)  # none, LZW, PackBits: others have no bound on what a file expands to


def needs_tifffile(stream: io.BufferedIOBase, channels: int | None) -> bool:
    """Whether a file is a TIFF that Pillow cannot read, or not with as many channels."""
    if stream.read(4) not in SIGNATURES:
        return False
    try:
        with Image.open(stream, formats=("TIFF",)) as image:
            return _has_bands(image.tag_v2, channels)
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, ValueError and more
        return True


def _has_bands(tags: Mapping[int, Any], channels: int | None) -> bool:
    samples = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    extra = tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    is_planar = samples > 1 and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == PLANES
    is_plain = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) in (GREY, RGB)
    has_dropped = channels == samples and UNSPECIFIED in extra  # the channel that Pillow drops is needed
    return is_plain and (len(extra) > 1 or has_dropped or (is_planar and max(bits) > 8))


class TiffBands:
    """The first page of a TIFF, whose tags have been checked.

    One sample beside greyscale or RGB counts as alpha; with two or more, all samples are bands.
    """

    def __init__(self, stream: io.BufferedIOBase):
        try:
            import tifffile
        except ImportError as error:
            reason = 'Pillow cannot read this TIFF, and tifffile is not installed: pip install "vit-jax[data]"'
            raise ValueError(reason) from error
        self._page = page = tifffile.TiffFile(stream).pages.first
        self.orientation = int(getattr(page.tags.get("Orientation"), "value", 1))
        samples, self._bits = page.samplesperpixel, page.bitspersample
        check_size(page.imagewidth, page.imagelength, samples * page.dtype.itemsize if page.dtype else 1)
        if page.photometric not in (GREY, RGB) or page.imagedepth != 1 or page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"its kind of TIFF ({page.photometric!r}, axes {page.axes}) is not supported")
        if page.dtype is None or not (self._bits == 8 * page.dtype.itemsize or self._bits in (10, 12, 14)):
            raise ValueError(f"its samples have {self._bits} bits: expected 8, 10, 12, 14 or 16, or floats")
        if page.compression not in COMPRESSIONS:
            raise ValueError(f"its compression {page.compression!r} is not supported: expected deflate, LZW or none")
        self._pixels = pixels_of(page.dtype)
        colours = 3 if page.photometric == RGB else 1
        self._colours = colours if samples <= colours + 1 else samples
        self._premultiplied = samples == colours + 1 and page.extrasamples == (ASSOCIATED,)

    def form(self) -> Form:
        return Form(self._colours, self._pixels)

    def read(self, channels: int, pixels: str) -> np.ndarray:
        """The samples, in the type of the file; without alpha unless `channels` counts it."""
        page = self._page
        if page.compression in DEFLATE:
            self._check_deflated()
        samples = page.asarray(maxworkers=1)
        samples = samples[..., None] if page.axes == "YX" else samples
        samples = as_pixels(np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples)
        if self._bits in (10, 12, 14):
            samples = widened(samples, self._bits)
        if self._premultiplied:
            samples = straight(samples)
        return samples if channels == samples.shape[2] else samples[..., : self._colours]

    def _check_deflated(self) -> None:
        """Raises ValueError if a strip or tile expands to more than its pixels. tifffile has no such limit."""
        page = self._page
        most = max(page.nbytes, min(math.prod(page.chunks) * page.dtype.itemsize, MAX_BYTES))  # a tile may be larger
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            page.parent.filehandle.seek(offset)
            part = page.parent.filehandle.read(count)
            if len(zlib.decompressobj().decompress(part, most + 1)) > most:
                raise ValueError(f"a part of it expands to more than {most:,} bytes of samples")
