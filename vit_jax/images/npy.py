"""Read .npy files as images, (h, w) or (h, w, c).

Numpy's own reader would allocate whatever a header claims.
"""

import io
import warnings

import numpy as np

from vit_jax.images.samples import Form, as_pixels, check_size, pixels_of

MAGIC = np.lib.format.MAGIC_PREFIX
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_header(stream: io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of a .npy file. Raises ValueError if it is damaged."""
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"its .npy format is version {version[0]}.{version[1]}: expected 1.0 or 2.0")
    with warnings.catch_warnings(action="ignore"):  # about files of Python 2
        shape, by_columns, dtype = HEADERS[version](stream)
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    return shape, by_columns, dtype


def check_channels(shape: tuple[int, int, int]) -> None:
    """Raises ValueError for the shape of an image that seems to have its channels first."""
    height, width, channels = shape
    if height < min(width, channels) and channels > 4:
        raise ValueError(
            f"its shape is {shape}: expected (height, width, channels), but this looks like channels first "
            f"(if it is not, set the number of channels to {channels})"
        )


class NpyImage:
    """An array in a .npy file, whose header has been checked. `orientation` is EXIF's for upright."""

    orientation = 1

    def __init__(self, stream: io.BufferedIOBase):
        self._stream = stream
        shape, self._by_columns, self._dtype = read_header(stream)
        if not 2 <= len(shape) <= 3:
            raise ValueError(f"its shape is {shape}: expected (height, width) or (height, width, channels)")
        self._shape = shape if len(shape) == 3 else (*shape, 1)
        height, width, channels = self._shape
        self._pixels = pixels_of(self._dtype)
        check_size(width, height, channels * self._dtype.itemsize)

    def form(self) -> Form:
        """Raises ValueError if it is unclear which axis has the channels."""
        check_channels(self._shape)
        return Form(self._shape[2], self._pixels)

    def read(self, channels: int, pixels: str) -> np.ndarray:
        """The samples, in the type of the file."""
        size = int(np.prod(self._shape)) * self._dtype.itemsize
        content = self._stream.read(size)
        if len(content) < size:
            raise ValueError(f"it is truncated: {len(content):,} of {size:,} bytes of samples")
        order = "F" if self._by_columns else "C"
        return as_pixels(np.frombuffer(content, self._dtype).reshape(self._shape, order=order))
