"""Read the preprocessing of images from files beside published weights: timm's and transformers'."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_jax.pretrained.json_files import CONFIG, PREPROCESSOR, load_config
from vit_jax.pretrained.preprocessing import (
    CLIP,
    HALF,
    IMAGENET,
    INTERPOLATIONS,
    LARGEST,
    Channels,
    Preprocessing,
    check_number,
    colours,
    fraction,
    sides,
)
from vit_jax.printable import printable


def _processor(size: dict, crop: int | None, resample: int, channels: tuple[Channels, Channels]) -> dict:
    """Values that a file may leave out."""
    mean, std = channels
    given = dict(size=size, crop_size=crop, do_center_crop=crop is not None, resample=resample)
    always = dict(do_resize=True, do_rescale=True, rescale_factor=1 / 255, do_normalize=True, do_pad=False)
    return {**given, **always, "image_mean": mean, "image_std": std}


# transformers' image processors, without "ImageProcessor".
PROCESSORS = {
    "Bit": _processor({"shortest_edge": 224}, 224, 3, CLIP),  # DINOv2
    "CLIP": _processor({"shortest_edge": 224}, 224, 3, CLIP),
    "DINOv3ViT": _processor({"height": 224, "width": 224}, None, 2, IMAGENET),
    "DeiT": _processor({"height": 256, "width": 256}, 224, 3, HALF),
    "Siglip": _processor({"height": 224, "width": 224}, None, 3, HALF),
    "ViT": _processor({"height": 224, "width": 224}, None, 2, HALF),
}


def read_preprocessing(folder: str | os.PathLike) -> Preprocessing | None:
    """Read the preprocessing from the folder of a published model.

    Args:
        folder: Contains timm's config.json, or transformers' preprocessor_config.json or processor_config.json.

    Returns:
        The preprocessing, or None if no file states it.

    Raises:
        ValueError: If a file is not JSON or has an unsupported value; the message names the file and the key.
    """
    config = load_config(folder) or {}
    if "architecture" in config or "pretrained_cfg" in config:  # transformers has "architectures"
        return from_timm(config, str(Path(folder, CONFIG)))
    name = "processor_config.json"
    config = load_config(folder, name) or {}
    if "image_processor" in config:
        return from_transformers(config["image_processor"], str(Path(folder, name)))
    config = load_config(folder, PREPROCESSOR)
    return None if config is None else from_transformers(config, str(Path(folder, PREPROCESSOR)))


def from_timm(config: dict[str, Any], file: str = "config.json") -> Preprocessing:
    """Preprocessing of a model of timm.

    Args:
        config: Contents of timm's config.json, or of its `pretrained_cfg`.
        file: Name of the file in error messages.

    Raises:
        ValueError: For an invalid value; the message names `file` and the key.
    """
    with _named(file):
        cfg = _object("pretrained_cfg", config.get("pretrained_cfg", config))
        given = {key: value for key, value in cfg.items() if value is not None}
        size = given.get("input_size", [3, 224, 224])
        if not isinstance(size, list | tuple) or len(size) != 3 or size[0] not in (1, 3):
            raise ValueError(f"input_size={size!r}: expected [3, height, width], or 1 for greyscale")
        values = {key: given[key] for key in ("crop_pct", "crop_mode", "interpolation", "mean", "std") if key in given}
        return Preprocessing(sides("input_size", size[1:]), **values)


def from_transformers(config: dict[str, Any], file: str = "preprocessor_config.json") -> Preprocessing:
    """Preprocessing of transformers' image processors in `PROCESSORS`.

    Differs from transformers: crops begin where torchvision's do. transformers rounds their offset down, which differs
    by one pixel for some sizes. Normalised values may differ by rounding.

    Args:
        config: Contents of a preprocessor_config.json.
        file: Name of the file in error messages.

    Raises:
        ValueError: For an unsupported processor or value; the message names `file` and the key.
    """
    with _named(file):
        config = _object("image_processor", config)
        defaults = _defaults(config)
        given = {**defaults, **{key: value for key, value in config.items() if value is not None}}
        for key, expected in (("do_resize", True), ("do_pad", False)):
            if given[key] is not expected:
                raise ValueError(f"{key}={given[key]!r}: expected {expected}")
        if not isinstance(given["size"], dict):  # in old files: of the shorter side for "Bit" and "CLIP", else of both
            height, width = sides("size", given["size"])
            is_short = "shortest_edge" in defaults["size"]
            given["size"] = {"shortest_edge": given["size"]} if is_short else {"height": height, "width": width}
        size, crop, mode = _sizes(given)
        number, known = given["resample"], dict(enumerate(INTERPOLATIONS))
        if number not in list(known):
            raise ValueError(f"resample={number!r}: expected one of {known}")
        return Preprocessing(crop, fraction(crop, size), mode, known[number], *_mean_and_std(given))


def _defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Values of the keys that the file may leave out."""
    key = next((key for key in ("image_processor_type", "feature_extractor_type") if config.get(key)), None)
    if key is None:
        raise ValueError("the key image_processor_type is missing")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(config[key]))
    if kind not in PROCESSORS:
        known = ", ".join(f"{kind}ImageProcessor" for kind in PROCESSORS)
        raise ValueError(f"{key}={config[key]!r}: expected one of {known}")
    return PROCESSORS[kind]


def _sizes(given: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int], str]:
    """Size to which images are resized, size of the crop, both (height, width), and the mode of the crop."""
    size, crop = given["size"], given["crop_size"] if given["do_center_crop"] else None
    if isinstance(crop, dict):
        crop = [crop.get("height"), crop.get("width")]
    if crop is not None:
        crop = sides("crop_size", crop)
    if size.keys() == {"height", "width"}:
        both = sides("size", [size["height"], size["width"]])
        return both, crop or both, "squash"
    if size.keys() != {"shortest_edge"}:
        raise ValueError(f"size={size!r}: expected height and width, or shortest_edge")
    if crop is None or crop[0] != crop[1]:
        raise ValueError(f"size={size!r}: expected do_center_crop=True and a square crop_size with shortest_edge")
    return sides("size", size["shortest_edge"]), crop, "center"


def _mean_and_std(given: dict[str, Any]) -> tuple[Channels, Channels]:
    """Mean and deviation of pixels in 0..1; those in the file are of pixels in 0..255 times `rescale_factor`."""
    factor = given["rescale_factor"] if given["do_rescale"] else 1
    check_number("rescale_factor", factor, 1 / LARGEST)
    mean, std = (0.0,) * 3, (1.0,) * 3
    if given["do_normalize"]:
        mean = colours("image_mean", given["image_mean"], -LARGEST)
        std = colours("image_std", given["image_std"], 1 / LARGEST)
    return tuple(value / (255 * factor) for value in mean), tuple(value / (255 * factor) for value in std)


def _object(key: str, value: Any) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{key}={value!r}: expected an object")
    return value


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Begin the messages of ValueErrors with the name of a file, and shorten values from it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{printable(file, None)}: {printable(error, 300)}") from error
