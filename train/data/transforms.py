"""Transforms of one image on the host: decode, crop, resize.

Images are (h, w, c), with samples uint8, uint16 or float32. Sizes are (height, width) and boxes are (left, top, right,
bottom), in pixels.
"""

import logging
import math
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from train.config import Data
from train.errors import UserError
from vit_jax import images
from vit_jax.images import WHITE, File, Form, Pixels
from vit_jax.pretrained.preprocessing import INTERPOLATIONS, Preprocessing

Box = tuple[float, float, float, float]
Shape = tuple[int, int, int]  # height, width, channels
INTERPOLATION = "bicubic"  # the default
BORDER = 4  # pixels

# Warnings about damage do not name the file. For images that cannot be decoded, `decode` raises Unreadable.
warnings.filterwarnings("ignore", module=r"PIL\.")
for library in ("PIL", "tifffile"):
    logging.getLogger(library).setLevel(logging.CRITICAL)


class Unreadable(UserError):
    """A file that is not a whole image of a supported format; printed as one line."""


def image_form(file: File, name: str) -> Form:
    """Channels and type of samples of an image, from its header, as `vit_jax.images.image_form`. Raises Unreadable."""
    try:
        return images.image_form(file, name)
    except images.Unreadable as error:
        raise Unreadable(str(error)) from error


def decode(file: File, channels: int, name: str, pixels: Pixels = "uint8") -> np.ndarray:
    """Decode an image at its own size, upright, as `vit_jax.images.decode`. Raises Unreadable."""
    try:
        return images.decode(file, channels, name, pixels)
    except images.Unreadable as error:
        raise Unreadable(str(error)) from error


def evaluation_of(config: Data, image_shape: Shape, mean: Sequence[float]) -> Preprocessing:
    """The preprocessing of images for evaluation and prediction. `mean` is the colour of borders."""
    return Preprocessing(
        image_shape[:2],
        crop_pct=config.eval_crop or 1.0,
        crop_mode=config.crop_mode or "center",
        interpolation=config.interpolation or INTERPOLATION,
        mean=tuple(mean) if len(mean) == 3 else (mean[0],) * 3,
    )


def evaluation_crop(image: np.ndarray, preprocessing: Preprocessing, mean: Sequence[float] | None = None) -> np.ndarray:
    """Resize and crop an image, as `preprocessing` says, with borders of the colour `mean` if it is given.

    An image of extreme aspect ratio, whose resized copy would be too large, is cropped before it is resized.
    """
    pictures, fills = _pictures(image), [None] * image.shape[2]
    if mean is not None and preprocessing.crop_mode == "border" and pictures[0].mode != "RGB":
        fills = [WHITE[image.dtype.name] * value for value in mean]
        fills = fills if image.dtype == np.float32 else list(map(round, fills))
    try:
        fitted = [preprocessing.fit(picture, fill) for picture, fill in zip(pictures, fills, strict=False)]
    except ValueError:
        size, share, interpolation = preprocessing.image_size, preprocessing.crop_pct, preprocessing.interpolation
        return center_crop(image, size, share, interpolation)
    return _pixels(fitted, image.dtype)


def center_crop(
    image: np.ndarray, size: tuple[int, int], share: float = 1.0, interpolation: str = INTERPOLATION
) -> np.ndarray:
    """Resize the central crop to `size`; its sides are `share` of the largest crop with the aspect ratio of `size`."""
    return _resize(image, _center_box(image.shape[:2], size, share), size, interpolation)


def random_crop(
    image: np.ndarray,
    size: tuple[int, int],
    min_area: float,
    rng: np.random.Generator,
    interpolation: str = INTERPOLATION,
) -> np.ndarray:
    """Resize a crop of random area and aspect ratio to `size` (Szegedy et al. 2015, arXiv:1409.4842).

    Args:
        image: The image, uint8 (h, w, c).
        size: Height and width of the result. The aspect ratio of the crop is that of `size` times 3/4 to 4/3.
        min_area: Smallest area of the crop, as a fraction of the image; the area is uniform between it and 1. With 1
            the crop is the largest central one.
        rng: Source of random numbers.
        interpolation: One of `INTERPOLATIONS`.
    """
    if min_area == 1:
        return center_crop(image, size, 1.0, interpolation)
    return _resize(image, _random_box(image.shape[:2], size, min_area, rng), size, interpolation)


def simple_crop(
    image: np.ndarray, size: tuple[int, int], rng: np.random.Generator, interpolation: str = INTERPOLATION
) -> np.ndarray:
    """Crop an image at random, after its smaller side is resized to `size`.

    This is the simple random crop of DeiT III (Touvron et al. 2022, arXiv:2204.07118). The crop may extend over the
    image by BORDER pixels, which are reflected. An image of extreme aspect ratio, whose resized copy would be too
    large, gets the central crop.
    """
    height, width = Preprocessing(size, 1.0, interpolation=interpolation).resized(*image.shape[:2])
    if height * width > images.MAX_PIXELS:
        return center_crop(image, size, 1.0, interpolation)
    whole = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
    resized = _resize(image, whole, (height, width), interpolation)
    padded = np.pad(resized, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), mode="reflect")
    top, left = (int(rng.integers(full - side + 1)) for full, side in zip(padded.shape, size, strict=False))
    return padded[top : top + size[0], left : left + size[1]]


def _center_box(full: tuple[int, int], size: tuple[int, int], share: float) -> Box:
    """The central box with the aspect ratio of `size`; its sides are `share` of the largest such box."""
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


def as_picture(image: np.ndarray) -> Image.Image:
    """An image of any kind to look at, in mode RGB or L: bands are averaged, and floats stretched to their range."""
    values = image if image.shape[2] == 3 else image.mean(axis=2, keepdims=True)
    low, high = (0, WHITE[image.dtype.name]) if image.dtype != np.float32 else (image.min(), image.max())
    values = np.rint((values.astype(np.float64) - low) * (255 / max(high - low, 1e-30)))
    return _pictures(values.astype(np.uint8))[0]


def _resize(image: np.ndarray, box: Box, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Crop the image to `box` and resize it to `size`, in one antialiased operation."""
    resample = INTERPOLATIONS.index(interpolation)
    resized = [picture.resize((size[1], size[0]), resample, box=box) for picture in _pictures(image)]
    return _pixels(resized, image.dtype)


def _pictures(image: np.ndarray) -> list[Image.Image]:
    """An image as one picture in RGB or, as Pillow has no others, as one for each channel: of bytes or of floats."""
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return [Image.fromarray(image)]
    bands = image if image.dtype == np.uint8 else image.astype(np.float32)
    return [Image.fromarray(np.ascontiguousarray(bands[..., i])) for i in range(image.shape[2])]


def _pixels(pictures: Sequence[Image.Image], dtype: np.dtype) -> np.ndarray:
    """Pixels (h, w, c) of what `_pictures` returns."""
    pixels = np.asarray(pictures[0]) if pictures[0].mode == "RGB" else np.stack(pictures, axis=-1)
    if dtype == np.uint16:  # interpolation exceeds the range of the samples
        pixels = np.clip(np.rint(pixels), 0, WHITE["uint16"])
    return pixels.astype(dtype, copy=False)
