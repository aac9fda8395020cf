"""Arguments and geometry of models with stages, where each stage halves the feature map."""

import math
from collections.abc import Sequence

from flax import linen as nn

from vit_jax.layers.check import at_least, check_sides


def per_stage(model: nn.Module, name: str, stages: int, least: int = 1) -> tuple[int | None, ...]:
    """The argument `name` of `model` as one value for each stage. A single value applies to all stages.

    Raises ValueError for another number of values, or a value below `least`.
    """
    at_least(model, **{name: least})
    value = getattr(model, name)
    values = tuple(value) if isinstance(value, Sequence) else (value,) * stages
    if len(values) != stages:
        raise ValueError(f"{name}={value!r}: expected one number, or {stages}, one for each stage")
    return values


def check_depth(model: nn.Module) -> None:
    """Raise ValueError unless `depth` is a tuple with the number of blocks of each stage, 1 or more."""
    if not isinstance(model.depth, Sequence) or not model.depth:
        raise ValueError(f"depth={model.depth!r}: expected a tuple, the number of blocks in each stage")
    at_least(model, depth=1)


def check_windows(size: int | Sequence[int], windows: Sequence[int], stride: int = 4, name: str = "image_size") -> None:
    """Raise ValueError unless the attention windows of every stage tile its map. The message suggests a size that fits.

    Args:
        size: pixels of the image, or (height, width). The map of stage i has one pixel for every `stride * 2**i` pixels
            of the image, rounded up.
        windows: side of the windows of each stage.
        stride: pixels of the image for each pixel of the first map.
        name: name of the argument `size` in the error message.
    """
    tiles = lambda side: all(math.ceil(side / (stride * 2**i)) % window == 0 for i, window in enumerate(windows))
    check_sides(name, size, tiles)
