"""Preprocessing of images for published weights.

Source: the evaluation transforms of timm and torchvision, applied to images of Pillow. Every pixel equals theirs.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from vit_jax.layers.check import one_of, pair

if TYPE_CHECKING:
    from PIL import Image

Channels = tuple[float, ...]  # red, green and blue, or grey

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # the index is Pillow's number

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation
HALF = ((0.5,) * 3, (0.5,) * 3)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

MAX_SIDE = 2**14  # pixels
LARGEST = 1e6  # of other numbers; positive ones are at least its inverse


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resizes an image, crops it to `image_size`, and normalises its pixels.

    `preprocess = Preprocessing(image_size=224)` and then `preprocess("photo.jpg")`. The defaults are timm's. With
    `dataclasses.replace(preprocess, image_size=(160, 256))` images are prepared for another size.

    Args:
        image_size: Height and width of the result in pixels, or one number for both.
        crop_pct: `image_size` as a fraction of the size to which an image is resized before it is cropped. The latter
            is rounded down.
        crop_mode: "center" keeps the aspect ratio and resizes the image so that it covers that size, "border" so that
            it fits into it; "squash" resizes both sides to that size. Images are then cropped around the centre.
            Where a crop is larger than the image, it is black, with "border" of the colour `mean`.
        interpolation: One of `INTERPOLATIONS`.
        mean: Mean of the red, green and blue of pixels in 0..1; one number for greyscale images.
        std: Their standard deviation.

    Raises:
        ValueError: For an invalid value; the message names the argument.
    """

    image_size: int | Sequence[int] = (224, 224)
    crop_pct: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: Sequence[float] = IMAGENET[0]
    std: Sequence[float] = IMAGENET[1]

    def __post_init__(self):
        object.__setattr__(self, "image_size", sides("image_size", self.image_size))
        count = 1 if isinstance(self.mean, list | tuple) and len(self.mean) == 1 else 3
        object.__setattr__(self, "mean", colours("mean", self.mean, -LARGEST, count))
        object.__setattr__(self, "std", colours("std", self.std, 1 / LARGEST, count))
        check_number("crop_pct", self.crop_pct, least=1 / LARGEST)
        one_of("crop_mode", self.crop_mode, CROP_MODES)
        one_of("interpolation", self.interpolation, INTERPOLATIONS)

    def __call__(self, image: "str | os.PathLike | np.ndarray | Image.Image") -> Float32[np.ndarray, "h w c"]:
        """Return the image as the weights expect it: `self.normalize(self.pixels(image))`."""
        return self.normalize(self.pixels(image))

    def pixels(self, image: "str | os.PathLike | np.ndarray | Image.Image") -> UInt8[np.ndarray, "h w c"]:
        """Resize and crop an image to `image_size`, without normalisation.

        Args:
            image: Path of an image file, which is decoded as in training: upright by its EXIF orientation and without
                alpha; pixels, uint8 (h, w, c); or an image of Pillow, which is converted to RGB as timm does, or to
                greyscale, and not rotated.

        Raises:
            ImportError: If Pillow is not installed.
            ValueError: If the file is not a whole image of a supported format, the array has another type or shape, or
                the resized image would be too large to crop.
        """
        picture = _images().as_rgb(image) if len(self.mean) == 3 else _as_grey(image)
        pixels = np.asarray(self.fit(picture))
        return pixels.reshape(*pixels.shape[:2], len(self.mean))

    def fit(self, picture: "Image.Image", fill: "int | float | tuple[int, ...] | None" = None) -> "Image.Image":
        """Resize and crop an image of Pillow. Raises ValueError if it would be resized too large.

        `fill` replaces `self.fill`, as the colour of the picture's mode where there is no image.
        """
        images = _images()
        height, width = self.resized(picture.height, picture.width)
        if height * width > images.MAX_PIXELS:
            raise ValueError(
                f"an image of {picture.width} x {picture.height} pixels would be resized to {width} x {height}, "
                f"more than the limit of {images.MAX_PIXELS:,} pixels"
            )
        picture = picture.resize((width, height), INTERPOLATIONS.index(self.interpolation))
        top, left = _offset(height, self.image_size[0]), _offset(width, self.image_size[1])
        if fill is None:
            fill = self.fill if picture.mode == "RGB" else self.fill[0]
        return images.window(picture, top, left, self.image_size, fill)

    def normalize(self, pixels: UInt8[np.ndarray, "*b h w c"]) -> Float32[np.ndarray, "*b h w c"]:
        """Divide pixels by 255, subtract `mean`, and divide by `std`, in float32."""
        values = pixels.astype(np.float32)
        values /= 255
        values -= np.array(self.mean, np.float32)
        values /= np.array(self.std, np.float32)
        return values

    @property
    def fill(self) -> tuple[int, int, int]:
        """Red, green and blue (0 to 255) of a crop where there is no image."""
        return tuple(round(255 * value) for value in self.mean) if self.crop_mode == "border" else (0, 0, 0)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image is resized before it is cropped."""
        target = [max(1, math.floor(side / self.crop_pct)) for side in self.image_size]
        if self.crop_mode == "squash":
            return tuple(target)
        if self.crop_mode == "center" and target[0] == target[1]:  # torchvision's Resize, which rounds down
            return tuple(int(target[0] * side / min(height, width)) for side in (height, width))
        ratios = height / target[0], width / target[1]
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return tuple(max(1, round(side / ratio)) for side in (height, width))  # timm's ResizeKeepRatio

    def to_config(self) -> dict[str, Any]:
        """The values as in `pretrained_cfg` of timm's config.json."""
        return {
            "input_size": [len(self.mean), *self.image_size],
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def fraction(crop: tuple[int, int], size: tuple[int, int]) -> float:
    """`crop_pct` of a crop from images that are resized to `size`, both (height, width).

    Raises:
        ValueError: If no number gives both sides of `size`.
    """
    share = min(side / full for side, full in zip(crop, size, strict=True))
    for value in (share, math.nextafter(share, 0)):  # the quotient of rounded numbers may be below `size`
        if all(math.floor(side / value) == full for side, full in zip(crop, size, strict=True)):
            return value
    raise ValueError(f"a crop of {crop} from {size}: expected sizes with the same aspect ratio")


def sides(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return `value` as (height, width). Raises ValueError, naming `name`, unless both are integers 1 to `MAX_SIDE`."""
    if max(pair(name, value)) > MAX_SIDE:
        raise ValueError(f"{name}={value!r}: expected at most {MAX_SIDE} pixels along each side")
    return pair(name, value)


def colours(name: str, value: Sequence[float], least: float, count: int = 3) -> Channels:
    """Return `value` as floats. Raises ValueError, naming `name`, for other than `count` numbers up to `LARGEST`."""
    if not isinstance(value, list | tuple) or len(value) != count:
        raise ValueError(f"{name}={value!r}: expected {'three numbers' if count == 3 else 'one number'}")
    for number in value:
        check_number(name, number, least)
    return tuple(float(number) for number in value)


def check_number(name: str, value: float, least: float) -> None:
    """Raise ValueError, naming `name`, unless `value` is a number from `least` to `LARGEST`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= LARGEST:
        raise ValueError(f"{name}={value!r}: expected a number from {least:g} to {LARGEST:g}")


def _offset(full: int, side: int) -> int:
    """First pixel of a central crop, by torchvision's rounding; negative if the crop is larger than the image."""
    return round((full - side) / 2) if full >= side else -((side - full) // 2)


def _as_grey(image: "str | os.PathLike | np.ndarray | Image.Image") -> "Image.Image":
    from PIL import Image

    if isinstance(image, Image.Image):
        return image.convert("L")
    pixels = _images().decode(image, 1, os.fspath(image)) if isinstance(image, str | os.PathLike) else np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 1 or not pixels.size:
        raise ValueError(f"image of shape {pixels.shape}, {pixels.dtype}: expected uint8 (height, width, 1)")
    return Image.fromarray(pixels[..., 0])


def _images() -> ModuleType:
    try:
        from vit_jax import images
    except ImportError as error:
        raise ImportError("reading and resizing images needs Pillow: pip install pillow") from error
    return images
