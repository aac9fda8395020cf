"""Images of a page: pixels as the network sees them, as small pictures inside the file."""

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from train.build import DataInfo
from train.config import Data
from train.data import Dataset
from train.data.sources import read
from train.data.transforms import evaluation_crop, evaluation_of

SIDE = 160  # pixels of the longer side, at most
TINY = 64  # up to this side a picture is stored without loss, and enlarged with visible pixels


class Thumbnail(NamedTuple):
    """A picture for an <img>: its `source`, its size in pixels, and whether it is enlarged with visible pixels."""

    source: str
    width: int
    height: int
    tiny: bool


def evaluation_image(dataset: Dataset, data: Data, index: int) -> np.ndarray:
    """An image of the evaluation split as the network sees it, (h, w, c)."""
    preprocessing = evaluation_of(data, dataset.image_shape, dataset.mean)
    return evaluation_crop(read(dataset.eval, index)[0], preprocessing, dataset.mean)


def thumbnail(pixels: np.ndarray) -> Thumbnail:
    """A picture of an image (h, w, c). Of more than three channels, the first three are shown."""
    pixels = visible(pixels)
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    picture.thumbnail((SIDE, SIDE))
    tiny = max(picture.size) <= TINY
    written = io.BytesIO()
    picture.save(written, *(["png"] if tiny else ["jpeg"]), quality=85)
    kind, content = ("png" if tiny else "jpeg"), base64.b64encode(written.getvalue()).decode()
    return Thumbnail(f"data:image/{kind};base64,{content}", *picture.size, tiny)


def denormalized(images: np.ndarray, info: DataInfo) -> np.ndarray:
    """Normalised images as pixels that can be shown: uint8, or the numbers themselves if images have floats."""
    images = images * np.array(info.std, np.float32) + np.array(info.mean, np.float32)
    return images if info.pixels == "float32" else np.clip(np.round(images * 255), 0, 255).astype(np.uint8)


def visible(pixels: np.ndarray) -> np.ndarray:
    """An image as uint8 with one or three channels: the first ones; other numbers are stretched to the range."""
    pixels = pixels[..., : 3 if pixels.shape[2] >= 3 else 1]
    if pixels.dtype == np.uint8:
        return pixels
    low, high = np.percentile(pixels, (1, 99))
    return np.clip((pixels - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
