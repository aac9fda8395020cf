"""Transforms of one image on the host: decode, crop, resize.

Images are arrays (h, w, c), with samples uint8, uint16 or float32, or files that are decoded when they are resized.
Sizes are (height, width) and boxes are (left, top, right, bottom), in pixels.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from train.config import Data
from train.errors import UserError
from vit_jax import images
from vit_jax.images import WHITE, File, Form, OpenImage, Pixels
from vit_jax.pretrained.preprocessing import INTERPOLATIONS, Preprocessing

Box = tuple[float, float, float, float]
Shape = tuple[int, int, int]  # height, width, channels
INTERPOLATION = "bicubic"  # the default
BORDER = 4  # pixels
MARGIN = 2  # a JPEG is decoded at a smaller size if a crop keeps at least MARGIN times the height and width it needs

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


@contextlib.contextmanager
def opened(file: File, channels: int, name: str, pixels: Pixels = "uint8") -> Iterator[OpenImage]:
    """Open an image, as `vit_jax.images.opened`. Raises Unreadable, also for what the body finds when it decodes it."""
    try:
        with images.opened(file, channels, name, pixels) as image:
            yield image
    except images.Unreadable as error:
        raise Unreadable(str(error)) from error


def pixels_of(image: np.ndarray | OpenImage) -> np.ndarray:
    """The pixels of an image at its own size."""
    return np.asarray(image.decoded) if isinstance(image, OpenImage) else image


def decode(file: File, channels: int, name: str, pixels: Pixels = "uint8") -> np.ndarray:
    """Decode an image at its own size, upright. Arguments and errors are those of `opened`."""
    with opened(file, channels, name, pixels) as image:
        return pixels_of(image)


def evaluation_of(config: Data, image_shape: Shape, mean: Sequence[float]) -> Preprocessing:
    """The preprocessing of images for evaluation and prediction. `mean` is the colour of borders."""
    return Preprocessing(
        image_shape[:2],
        crop_pct=config.eval_crop or 1.0,
        crop_mode=config.crop_mode or "center",
        interpolation=config.interpolation or INTERPOLATION,
        mean=tuple(mean) if len(mean) == 3 else (mean[0],) * 3,
    )


def evaluation_crop(
    image: np.ndarray | OpenImage, preprocessing: Preprocessing, mean: Sequence[float] | None = None
) -> np.ndarray:
    """Resize and crop an image, as `preprocessing` says, with borders of the colour `mean` if it is given.

    An image of extreme aspect ratio, whose resized copy would be too large, is cropped before it is resized.
    """
    pictures, pixels = _pictures(image)
    fills = [None] * len(pictures)
    if mean is not None and preprocessing.crop_mode == "border" and pictures[0].mode != "RGB":
        fills = [WHITE[pixels] * value for value in mean]
        fills = fills if pixels == "float32" else list(map(round, fills))
    filled = list(zip(pictures, fills, strict=True))
    try:
        fitted = [preprocessing.fit(picture, fill) for picture, fill in filled]
    except ValueError:
        size, share, interpolation = preprocessing.image_size, preprocessing.crop_pct, preprocessing.interpolation
        return center_crop(image, size, share, interpolation)
    return _stacked(fitted, pixels)


def center_crop(
    image: np.ndarray | OpenImage, size: tuple[int, int], share: float = 1.0, interpolation: str = INTERPOLATION
) -> np.ndarray:
    """Resize the central crop to `size`; its sides are `share` of the largest crop with the aspect ratio of `size`."""
    return _resize(image, _center_box(_size(image), size, share), size, interpolation)


def random_crop(
    image: np.ndarray | OpenImage,
    size: tuple[int, int],
    min_area: float,
    rng: np.random.Generator,
    interpolation: str = INTERPOLATION,
) -> np.ndarray:
    """Resize a crop of random area and aspect ratio to `size` (Szegedy et al. 2015, arXiv:1409.4842).

    Args:
        image: The image.
        size: Height and width of the result. The aspect ratio of the crop is that of `size` times 3/4 to 4/3.
        min_area: Smallest area of the crop, as a fraction of the image; the area is uniform between it and 1. With 1
            the crop is the largest central one.
        rng: Source of random numbers.
        interpolation: One of `INTERPOLATIONS`.
    """
    if min_area == 1:
        return center_crop(image, size, 1.0, interpolation)
    return _resize(image, _random_box(_size(image), size, min_area, rng), size, interpolation)


def simple_crop(
    image: np.ndarray | OpenImage, size: tuple[int, int], rng: np.random.Generator, interpolation: str = INTERPOLATION
) -> np.ndarray:
    """Crop an image at random, after its smaller side is resized to `size`.

    This is the simple random crop of DeiT III (Touvron et al. 2022, arXiv:2204.07118). The crop may extend over the
    image by BORDER pixels, which are reflected. An image of extreme aspect ratio, whose resized copy would be too
    large, gets the central crop.
    """
    full = _size(image)
    height, width = Preprocessing(size, 1.0, interpolation=interpolation).resized(*full)
    if height * width > images.MAX_PIXELS:
        return center_crop(image, size, 1.0, interpolation)
    whole = (0.0, 0.0, float(full[1]), float(full[0]))
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
    return _pictures(values.astype(np.uint8))[0][0]


def _size(image: np.ndarray | OpenImage) -> tuple[int, int]:
    return image.size if isinstance(image, OpenImage) else image.shape[:2]


def _resize(image: np.ndarray | OpenImage, box: Box, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Crop the image to `box` and resize it to `size`, in one antialiased operation."""
    if isinstance(image, OpenImage) and interpolation != "nearest":  # which takes pixels as they are
        left, top, right, bottom = box
        image.reduce(min((bottom - top) / size[0], (right - left) / size[1]) / MARGIN)
        box = tuple(side / image.reduction for side in box)
    pictures, pixels = _pictures(image)
    resample = INTERPOLATIONS.index(interpolation)
    return _stacked([picture.resize((size[1], size[0]), resample, box=box) for picture in pictures], pixels)


def _pictures(image: np.ndarray | OpenImage) -> tuple[list[Image.Image], Pixels]:
    """An image as pictures, and the type of its samples.

    RGB of 8 bits is one picture; as Pillow has no others of several channels, these are one for each channel, of bytes
    or of floats.
    """
    pixels = image.decoded if isinstance(image, OpenImage) else image
    if isinstance(pixels, Image.Image):
        return [pixels], "uint8"
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return [Image.fromarray(pixels)], "uint8"
    bands = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    pictures = [Image.fromarray(np.ascontiguousarray(bands[..., i])) for i in range(pixels.shape[2])]
    return pictures, pixels.dtype.name


def _stacked(pictures: Sequence[Image.Image], pixels: Pixels) -> np.ndarray:
    """The pixels (h, w, c) of what `_pictures` returns."""
    samples = np.asarray(pictures[0]) if pictures[0].mode == "RGB" else np.stack(pictures, axis=-1)
    if pixels == "uint16":  # interpolation exceeds the range of the samples
        samples = np.clip(np.rint(samples), 0, WHITE["uint16"])
    return samples.astype(pixels, copy=False)
