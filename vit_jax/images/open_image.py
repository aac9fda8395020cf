"""An image whose file is open, decoded when its pixels are needed."""

import contextlib
import functools
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from vit_jax.images import pillow
from vit_jax.images.bands import TiffBands
from vit_jax.images.npy import NpyImage
from vit_jax.images.pillow import FORMATS, PillowImage
from vit_jax.images.samples import Form, converted, recoloured, upright

Reader = PillowImage | TiffBands | NpyImage


class Unreadable(ValueError):
    """A file that is not a whole image of a supported format."""


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Convert any exception of a decoder to Unreadable. `name` is that of the file."""
    try:
        yield
    except UnidentifiedImageError as error:
        names = ", ".join((*FORMATS, "npy"))
        raise Unreadable(f"cannot read the image {name}: it is none of {names}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, MemoryError and more
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"cannot read the image {name}: {reason}") from error


class OpenImage:
    """An image, rotated according to its EXIF orientation, that is decoded when its pixels are needed.

    Every method raises Unreadable if the file is not a whole image, has other bands than expected, or has floats that
    are not finite or should become integers.

    Args:
        reader: The opened file.
        form: The channels and the type of samples that are wanted.
        name: Name of the file in error messages.

    Attributes:
        reduction: The height and width divided by those at which it is decoded: 1, 2, 4 or 8.
    """

    def __init__(self, reader: Reader, form: Form, name: str):
        self._reader, self._form, self._name = reader, form, name
        self.reduction = 1

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width. Only a JPEG has them before it is decoded, as EXIF may be at the end of other files."""
        if self._is_jpeg:
            with explained(self._name):
                return self._reader.size
        pixels = self.decoded
        return pixels.shape[:2] if isinstance(pixels, np.ndarray) else (pixels.height, pixels.width)

    @functools.cached_property
    def decoded(self) -> np.ndarray | Image.Image:
        """Pixels (h, w, c); RGB of 8 bits is an image of Pillow, as an array would cost a copy, a tenth of the time."""
        with explained(self._name):
            samples = self._reader.read(*self._form)
            if isinstance(samples, Image.Image):
                return pillow.upright(samples, self._reader.orientation)
            channels, pixels = self._form
            return converted(recoloured(upright(samples, self._reader.orientation), channels), pixels)

    def reduce(self, scale: float) -> None:
        """Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, but not below 1 / `scale`.

        Nothing changes for other formats, and once the image is decoded.
        """
        if self._is_jpeg and "decoded" not in vars(self):
            with explained(self._name):
                self.reduction = self._reader.reduce(scale)

    @property
    def _is_jpeg(self) -> bool:
        return isinstance(self._reader, PillowImage) and self._reader.is_jpeg
