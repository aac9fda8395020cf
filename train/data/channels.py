"""Decide whether the images of a folder are read as greyscale or as RGB."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import rich.progress

from train.data.transforms import Unreadable, image_channels

SAMPLE = 1000  # headers to read first; if one of them is in colour, no others are read
CHUNK = 64  # headers per task of the thread pool


def folder_channels(train: Sequence[str], evaluation: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Number of channels to read the images of a folder with: 3 if any training image is in colour, otherwise 1.

    Args:
        train: Paths of the training images, one or more.
        evaluation: Paths of the evaluation images.

    Returns:
        The number of channels, and notes for the user if greyscale and colour are mixed.

    Raises:
        Unreadable: If no training image of an evenly spaced sample can be read.
    """
    examples = _examples(_sample(train))
    if not examples:
        image_channels(train[0], train[0])  # raises Unreadable
    if 3 not in examples and len(train) > SAMPLE:
        examples = _examples(train, "Looking for images in colour")
    if len(examples) == 2:
        return 3, (f"greyscale and colour images are mixed; all are read as RGB: {examples[1]}, {examples[3]}",)
    (channels,) = examples
    if channels == 1 and (colour := _examples(_sample(evaluation)).get(3)):
        return 1, (f"all training images are greyscale; colour images for evaluation are read as greyscale: {colour}",)
    return channels, ()


def _sample(paths: Sequence[str]) -> Sequence[str]:
    """Up to SAMPLE evenly spaced paths."""
    return paths[:: -(-len(paths) // SAMPLE)]


def _examples(paths: Sequence[str], description: str | None = None) -> dict[int, str]:
    """The first path for each number of channels. Reading stops once both 1 and 3 are found."""
    examples: dict[int, str] = {}
    with contextlib.closing(_all_channels(paths)) as every:
        shown = rich.progress.track(every, description, total=len(paths)) if description else every
        for path, channels in zip(paths, shown, strict=True):
            if channels is not None:
                examples.setdefault(channels, path)
            if len(examples) == 2:
                break
    return examples


def _all_channels(paths: Sequence[str]) -> Iterator[int | None]:
    """Yield the number of channels of each image in order, None if it cannot be read."""
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]  # a future takes as long as a header
    with ThreadPoolExecutor(os.cpu_count()) as pool, contextlib.closing(pool.map(_chunk_channels, chunks)) as results:
        for chunk in results:
            yield from chunk


def _chunk_channels(paths: Sequence[str]) -> list[int | None]:
    return [_channels(path) for path in paths]


def _channels(path: str) -> int | None:
    with contextlib.suppress(Unreadable):
        return image_channels(path, path)
    return None
