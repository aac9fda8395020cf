"""Samples of decoded images: their types, and conversions of types and of numbers of channels.

Arrays are (h, w, c): 1 channel is greyscale, 3 are red, green and blue, and any other number are bands.
"""

from typing import Literal, NamedTuple

import numpy as np

Pixels = Literal["uint8", "uint16", "float32"]  # types of samples
WHITE = {"uint8": 255, "uint16": 65535, "float32": 1}  # the value of white; black is 0

MAX_PIXELS = 2**26  # decoding with Pillow takes 11 to 25 bytes a pixel in each thread: up to 1.6 GiB
MAX_BYTES = 2**30  # of samples

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as in Pillow


class Form(NamedTuple):
    """How an image is stored.

    Attributes:
        channels: 1 for greyscale, 3 for colour, otherwise the number of bands; alpha does not count.
        pixels: Type of its samples.
    """

    channels: int
    pixels: Pixels


def check_size(width: int, height: int, bytes_per_pixel: int) -> None:
    """Raises ValueError for an image that is empty or too large."""
    if not width * height * bytes_per_pixel:
        raise ValueError("it has no pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")
    if width * height * bytes_per_pixel > MAX_BYTES:
        raise ValueError(f"its samples take {width * height * bytes_per_pixel:,} bytes, more than {MAX_BYTES:,}")


def pixels_of(dtype: np.dtype) -> Pixels:
    """The type in which samples of `dtype` are read. Raises ValueError for samples without a fixed range."""
    if dtype.kind == "f":
        return "float32"
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return f"uint{8 * dtype.itemsize}"
    if dtype.kind == "i":
        raise ValueError("its samples are signed numbers, which have no fixed range")
    raise ValueError(f"its samples are of type {dtype}: expected uint8, uint16 or float32")


def as_pixels(samples: np.ndarray) -> np.ndarray:
    """Samples of any byte order and of a type that `pixels_of` accepts, as that type.

    Raises ValueError if a number is NaN, infinite, or beyond float32.
    """
    with np.errstate(over="ignore"):
        samples = samples.astype(pixels_of(samples.dtype), copy=False)
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise ValueError("it has samples that are not finite (NaN or infinity)")
    return samples


def widened(samples: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned samples of 9 to 32 bits as uint16, with white at 65535."""
    if bits > 16:
        return (samples >> (bits - 16)).astype(np.uint16)
    samples = samples.astype(np.uint16)
    return samples if bits == 16 else samples << (16 - bits) | samples >> (2 * bits - 16)


def converted(samples: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Samples of another type, of the same colours. Raises ValueError for floats that should become integers."""
    given = samples.dtype.name
    if given == pixels:
        return samples
    if pixels == "float32":
        return samples.astype(np.float32) / np.float32(WHITE[given])
    if given == "float32":
        raise ValueError("its samples are floating-point numbers, which have no fixed range: expected integers")
    return samples.astype(np.uint16) * 257 if pixels == "uint16" else (samples >> 8).astype(np.uint8)


def recoloured(samples: np.ndarray, channels: int) -> np.ndarray:
    """Greyscale as RGB, or RGB as greyscale. Raises ValueError for any other change of channels."""
    given = samples.shape[-1]
    if given == channels:
        return samples
    if (given, channels) == (1, 3):
        return np.repeat(samples, 3, axis=-1)
    if (given, channels) == (3, 1):
        grey = (samples @ LUMA)[..., None]
        return (grey if samples.dtype.kind == "f" else grey.round()).astype(samples.dtype)
    raise ValueError(f"it has {given} {'channel' if given == 1 else 'channels'}: expected {channels}")


def straight(samples: np.ndarray) -> np.ndarray:
    """Undo the premultiplication of all channels by alpha, the last one."""
    white = WHITE[samples.dtype.name]
    colours, alpha = samples[..., :-1].astype(np.float64), samples[..., -1:]
    colours = np.divide(colours * white, alpha, out=np.zeros_like(colours), where=alpha > 0)
    colours = np.minimum(colours if samples.dtype.kind == "f" else colours.round(), white)
    return np.concatenate([colours.astype(samples.dtype), alpha], axis=-1)


def upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and flip an image as its EXIF orientation says; unknown ones leave it as it is."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(samples[rows, columns])
