"""Small folders of images, and datasets whose batches can be predicted."""

import numpy as np
from PIL import Image

from train.config import Data
from train.data import Dataset, load_dataset
from train.data.sources import ArraySource

SPLITS = {"train": 22, "val": 10}


def noise(height, width, channels=3, seed=0):
    """A smooth random image, which resizing hardly changes."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height)))
    return pixels if channels == 3 else pixels[..., :1]


def write_folder(root, splits=SPLITS, size=lambda i: (12, 10), suffix="png"):
    """A folder of two classes; example i of a split is noise of seed i, size `size(i)`, class i % 2."""
    for split, count in splits.items():
        for i in range(count):
            path = root / split / "ab"[i % 2] / f"{i:03}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(*size(i), seed=i)).save(path)
    return root


def numbered(count, classes=4):
    """A dataset in memory whose image i is filled with the number i."""
    images = np.tile(np.arange(count, dtype=np.uint8)[:, None, None, None], (1, 6, 6, 1))
    source = ArraySource(images, (np.arange(count) % classes).astype(np.int32))
    return Dataset(source, source, tuple("abcd"), (6, 6, 1), (0.5,), (0.5,), ())


def lazy(tmp_path, **changes):
    """A folder dataset that is decoded again in each epoch, as its images differ in size, and its config."""
    write_folder(tmp_path, size=lambda i: (20 + i, 40 - i))
    config = Data(f"folder:{tmp_path}", image_size=(8, 6), **changes)
    return load_dataset(config), config


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def truncate(*paths):
    [path.write_bytes(path.read_bytes()[:60]) for path in paths]
