"""Arguments and geometry of models in stages, whose map halves from each to the next."""

import math
from collections.abc import Sequence

from flax import linen as nn

from vit_jax.layers.check import at_least, check_sides


def per_stage(model: nn.Module, name: str, stages: int, least: int = 1) -> tuple[int | None, ...]:
    """The argument `name` of `model` as one value for each stage; a single value stands for all.

    Raises ValueError for another number of values, and for one below `least`.
    """
    at_least(model, **{name: least})
    value = getattr(model, name)
    values = tuple(value) if isinstance(value, Sequence) else (value,) * stages
    if len(values) != stages:
        raise ValueError(f"{name}={value!r}: expected one number, or {stages}, one for each stage")
    return values


def check_depth(model: nn.Module) -> None:
    """Raises ValueError unless `depth` has a number of blocks, 1 or more, for each stage."""
    if not isinstance(model.depth, Sequence) or not model.depth:
        raise ValueError(f"depth={model.depth!r}: expected a tuple, the number of blocks in each stage")
    at_least(model, depth=1)


def check_windows(size: int | Sequence[int], windows: Sequence[int], stride: int = 4, name: str = "image_size") -> None:
    """Raises ValueError, naming sides that do, unless windows of these sides, one for each stage, tile its map.

    The map of stage i has one pixel for every `stride * 2**i` of the image, the last of which may be cut off. `name` is
    that of the argument `size` came as.
    """
    tiles = lambda side: all(math.ceil(side / (stride * 2**i)) % window == 0 for i, window in enumerate(windows))
    check_sides(name, size, tiles)
