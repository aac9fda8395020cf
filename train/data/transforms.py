"""What the host does to one image: decode, crop, resize.

Images are uint8 (h, w, c). In pixels, a size is (height, width) and a box (left, top, right, bottom).
"""

import io
import math
import os

import numpy as np
from PIL import Image

from train.config import UserError

File = str | os.PathLike | io.BytesIO
Box = tuple[float, float, float, float]
GREYSCALE_MODES = ("1", "L", "LA", "I;16")


class Unreadable(UserError):
    """A file that is no whole image."""


def image_channels(file: File, name: str) -> int:
    """1 for a greyscale image, 3 for any other; `name` says in Unreadable which file it is."""
    with _opened(file, name) as image:
        return 1 if image.mode in GREYSCALE_MODES else 3


def decode(file: File, channels: int, name: str) -> np.ndarray:
    """The image in `file`, at its own size, with 1 (grey) or 3 (RGB) channels.

    Palettes are resolved and alpha is dropped. Raises Unreadable with `name` if the file is no whole image.
    """
    with _opened(file, name) as image:
        try:
            pixels = np.asarray(_converted(image, "L" if channels == 1 else "RGB"))
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError and more
            raise _unreadable(name, error) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def center_crop(image: np.ndarray, size: tuple[int, int], share: float) -> np.ndarray:
    """The central `share` of the shorter side, resized to `size`."""
    return _resize(image, _center_box(image.shape[:2], size, share), size)


def random_crop(image: np.ndarray, size: tuple[int, int], min_area: float, rng: np.random.Generator) -> np.ndarray:
    """A random part of random area and aspect, resized to `size` (Szegedy et al. 2015, arXiv:1409.4842).

    Its share of the area is uniform in `min_area` to 1; its aspect is that of `size` times 3/4 to 4/3.
    `min_area=1` gives the largest central crop instead.
    """
    if min_area == 1:
        return center_crop(image, size, 1.0)
    return _resize(image, _random_box(image.shape[:2], size, min_area, rng), size)


def _opened(file: File, name: str) -> Image.Image:
    try:
        return Image.open(file)
    except Exception as error:  # see decode
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> Unreadable:
    return Unreadable(f"cannot read the image {name}: {' '.join(str(error).split())}")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "I;16":  # Pillow would clip 16 bits at 255; keep the upper 8
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # Pillow warns when a transparent palette loses its alpha in one step
        image = image.convert("RGBA")
    return image.convert(mode)


def _center_box(full: tuple[int, int], size: tuple[int, int], share: float) -> Box:
    """The central box with the aspect of `size` and `share` of the largest one's sides."""
    scale = share * min(full[0] / size[0], full[1] / size[1])
    top, left = (max(0.0, (f - scale * s) / 2) for f, s in zip(full, size, strict=True))
    return left, top, full[1] - left, full[0] - top


def _random_box(full: tuple[int, int], size: tuple[int, int], min_area: float, rng: np.random.Generator) -> Box:
    height, width = full
    for _ in range(10):
        area = height * width * rng.uniform(min_area, 1)
        aspect = size[1] / size[0] * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = math.sqrt(area / aspect), math.sqrt(area * aspect)
        if h <= height and w <= width:
            top, left = rng.uniform(0, height - h), rng.uniform(0, width - w)
            return left, top, min(left + w, width), min(top + h, height)
    return _center_box(full, size, 1.0)


def _resize(image: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The part of the image inside `box`, resized to `size` in one antialiased step."""
    channels = image.shape[2]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized).reshape(*size, channels)
