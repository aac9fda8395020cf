"""Find how the images of a dataset are read: their number of channels and the type of their samples."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import rich.progress

from train.config import Data
from train.data.transforms import Unreadable, image_form
from train.errors import UserError
from vit_jax.images import File, Form

SAMPLE = 1000  # headers to read first; if one of them is in colour, no others are read
CHUNK = 64  # headers per task of the thread pool


class EncodedImage(NamedTuple):
    """An encoded image in a sequence of files that may be read on access."""

    files: Sequence[File]
    index: int
    name: str

    def __str__(self) -> str:
        return self.name


Image = str | EncodedImage  # a str is a path
ByForm = dict[Form, Image]  # an image for each form


def common_form(train: Sequence[Image], evaluation: Sequence[Image], config: Data) -> tuple[Form, tuple[str, ...]]:
    """The form in which all images of a dataset are read: that of `config`, otherwise one that fits all of them.

    Greyscale and colour are read as colour if any training image is in colour; 8 and 16 bits as 16 bits.

    Args:
        train: The training images, one or more.
        evaluation: The evaluation images.
        config: Number of channels and type of samples, if they are configured.

    Returns:
        The form, and notes for the user about images that are stored in another one.

    Raises:
        Unreadable: If no training image of an evenly spaced sample can be read.
        UserError: If images differ in bands, or integers and floats are mixed.
    """
    if config.channels and config.pixels:
        return Form(config.channels, config.pixels), ()
    of_train, of_evaluation = _by_form(_sample(train)), _by_form(_sample(evaluation))
    if not of_train:
        _read_form(train[0])  # raises Unreadable
    if {form.channels for form in of_train} == {1} and not config.channels and len(train) > SAMPLE:
        of_train |= _by_form(train, "Looking for images in colour", until_colour=True)
    channels, of_channels = (config.channels, ()) if config.channels else _channels(of_train, of_evaluation)
    pixels, of_pixels = (config.pixels, ()) if config.pixels else _pixels(of_evaluation | of_train)
    return Form(channels, pixels), (*of_channels, *of_pixels)


def _channels(train: ByForm, evaluation: ByForm) -> tuple[int, tuple[str, ...]]:
    there = {form.channels: path for form, path in train.items()}
    every = {form.channels: path for form, path in evaluation.items()} | there
    if len(every) == 1:
        return *there, ()
    if every.keys() != {1, 3}:
        found = " and ".join(f"{channels} ({every[channels]})" for channels in sorted(every)[:3])
        raise UserError(f"images differ in their number of channels: {found}; expected the same in all")
    if len(there) == 2:
        return 3, (f"greyscale and colour images are mixed; all are read as RGB: {there[1]}, {there[3]}",)
    if 3 in there:
        return 3, ()
    return 1, (f"all training images are greyscale; colour images for evaluation are read as greyscale: {every[3]}",)


def _pixels(found: ByForm) -> tuple[str, tuple[str, ...]]:
    there = {form.pixels: path for form, path in found.items()}
    if len(there) == 1:
        return *there, ()
    if "float32" in there:
        types = " and ".join(f"{pixels} ({path})" for pixels, path in sorted(there.items()))
        raise UserError(
            f"images differ in the type of their samples: {types}; --data.pixels=float32 reads integers as 0..1"
        )
    return "uint16", (
        f"images of 8 and 16 bits are mixed; all are read at 16 bits: {there['uint8']}, {there['uint16']}",
    )


def _sample(paths: Sequence[Image]) -> Sequence[Image]:
    """Up to SAMPLE evenly spaced paths."""
    return paths[:: -(-len(paths) // SAMPLE) or 1]


def _by_form(paths: Sequence[Image], description: str | None = None, *, until_colour: bool = False) -> ByForm:
    """The first image of each form."""
    found: ByForm = {}
    with contextlib.closing(_all_forms(paths)) as every:
        shown = rich.progress.track(every, description, total=len(paths)) if description else every
        for path, form in zip(paths, shown, strict=True):
            if form is not None:
                found.setdefault(form, path)
                if until_colour and form.channels > 1:
                    break
    return found


def _all_forms(paths: Sequence[Image]) -> Iterator[Form | None]:
    """Yield the form of each image in order, None if it cannot be read."""
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]  # a future takes as long as a header
    with ThreadPoolExecutor(os.cpu_count()) as pool, contextlib.closing(pool.map(_chunk_forms, chunks)) as results:
        for chunk in results:
            yield from chunk


def _chunk_forms(paths: Sequence[Image]) -> list[Form | None]:
    return [_form(path) for path in paths]


def _form(path: Image) -> Form | None:
    with contextlib.suppress(Unreadable):
        return _read_form(path)
    return None


def _read_form(image: Image) -> Form:
    file = image if isinstance(image, str) else image.files[image.index]
    return image_form(file, str(image))
