"""Arguments that many models take, checked and brought to one form."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jax import Array


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """`value` as (height, width): a single number stands for both. Raises ValueError unless both are positive."""
    sides = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{name}={value!r}: expected a positive integer or a pair (height, width) of them")
    return sides


def patch_grid(
    image_size: int | Sequence[int], patch_size: int | Sequence[int], name: str = "patch_size"
) -> tuple[int, int]:
    """Rows and columns of patches in an image. Raises ValueError when a patch side does not divide its image side.

    `name` is that of the argument `patch_size` came as.
    """
    height, width = pair("image_size", image_size)
    patch_height, patch_width = pair(name, patch_size)
    if height % patch_height or width % patch_width:
        raise ValueError(
            f"image_size={image_size!r}: expected multiples of {name}={patch_size!r}, "
            "height by height and width by width"
        )
    return height // patch_height, width // patch_width


def patch_count(name: str, size: int, patch_name: str, patch_size: int) -> int:
    """Patches of `patch_size` along a single axis. Raises ValueError, by these names, unless they fill its `size`."""
    if patch_size < 1:
        raise ValueError(f"{patch_name}={patch_size!r}: expected at least 1")
    if size < 1 or size % patch_size:
        raise ValueError(f"{name}={size!r}: expected a positive multiple of {patch_name}={patch_size!r}")
    return size // patch_size


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")


_AT_LEAST = dict(
    dim=1, heads=1, dim_head=1, mlp_dim=1, channels=1, depth=0, cls_depth=0, num_classes=0, num_register_tokens=0
)
_RATES = ("dropout", "emb_dropout", "layer_dropout", "attn_dropout", "ff_dropout")
_RATES += ("dropout_rate", "attention_dropout", "stochastic_depth_rate")


def at_least(model: object, **minimums: int) -> None:
    """Raises ValueError when an argument of `model`, or any number of it, is below its minimum."""
    for name, minimum in minimums.items():
        value = vars(model).get(name)
        numbers = value if isinstance(value, Sequence) else (value,)
        if any(number is not None and number < minimum for number in numbers):
            raise ValueError(f"{name}={value!r}: expected at least {minimum}")


def expect(model: nn.Module, name: str, holds: bool, expected: str) -> None:
    """Raises ValueError, saying what was `expected` of the argument `name` of `model`, unless that `holds`."""
    if not holds:
        raise ValueError(f"{name}={getattr(model, name)!r}: expected {expected}")


def frozen(value: Any) -> Any:
    """`value` with tuples in place of lists and frozen dicts in place of dicts, at any depth."""
    if type(value) in (list, tuple):
        return tuple(map(frozen, value))
    if isinstance(value, Mapping):
        return FrozenDict({key: frozen(item) for key, item in value.items()})
    return value


def check_arguments(model: nn.Module) -> None:
    """Validates the common arguments that `model` has, by name, and freezes all fields.

    Lists become tuples, so that a model built from a configuration file can be hashed, as `jax.jit(model.apply)` does.

    Raises ValueError for a size below 1, a number of layers or classes below 0, a rate outside 0 to 1, a `pool` other
    than "cls" and "mean", and a `patch_size` that does not divide `image_size`.
    """
    for field in dataclasses.fields(model):
        if field.init and field.name not in ("parent", "name"):
            object.__setattr__(model, field.name, frozen(getattr(model, field.name)))
    at_least(model, **_AT_LEAST)
    arguments = vars(model)
    for name in _RATES:
        if not 0 <= arguments.get(name, 0) <= 1:
            raise ValueError(f"{name}={arguments[name]!r}: expected 0 to 1")
    if "pool" in arguments:
        one_of("pool", model.pool, ("cls", "mean"))
    if {"image_size", "patch_size"} <= arguments.keys() and arguments.get("input_shape") is None:
        patch_grid(model.image_size, model.patch_size)
    elif arguments.get("image_size") is not None:
        pair("image_size", model.image_size)


def check_sides(name: str, size: int | Sequence[int], fits: Callable[[int], bool]) -> None:
    """Raises ValueError, naming the nearest sides that do, unless the height and the width of `size` fit."""
    for side in pair(name, size):
        if not fits(side):
            below, above = range(side - 1, 0, -1), range(side + 1, side + 4096)
            near = [str(s) for sides in (below, above) if (s := next(filter(fits, sides), None))]
            raise ValueError(f"{name}={size!r}: expected sides such as {' or '.join(near) or 'none: no size fits'}")


def check_images(images: Array, channels: int, at_most: int | Sequence[int] | None = None) -> None:
    """Raises ValueError unless `images` is (b, height, width, channels), in floating point.

    `at_most` is the model's `image_size` if its position table limits height and width.
    """
    check_array("images", images, "height, width", channels)
    if at_most is not None:
        check_fits("images", images, pair("image_size", at_most), "image_size")


def check_video(video: Array, channels: int | None = None) -> None:
    """Raises ValueError unless `video` is (b, frames, height, width, channels) in floating point.

    With `channels=None`, any number of channels is accepted.
    """
    check_array("video", video, "frames, height, width", channels)


def check_array(what: str, array: Array, axes: str, channels: int | None) -> None:
    """Raises ValueError, calling it `what`, unless `array` is (b, *axes, channels) in floating point.

    `axes` are names between commas; any channels will do for None.
    """
    if array.ndim != axes.count(",") + 3 or channels not in (None, array.shape[-1]):
        expected = f"(batch, {axes}, channels)" + ("" if channels is None else f" with channels={channels}")
        raise ValueError(f"{what} of shape {array.shape}: expected {expected}")
    check_floating(what, array)


def check_floating(what: str, array: Array) -> None:
    """Raises ValueError, calling it `what`, unless `array` is of floating point: models compute in its type."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{what} of dtype {array.dtype}: expected floating-point numbers, such as float32")


def check_fits(what: str, array: Array, sides: Sequence[int], name: str) -> None:
    """Raises ValueError, calling it `what`, when an axis of `array` (b, *axes, c) is longer than that of `sides`.

    `sides` is the value of the argument `name`: the size that the position table covers. An input that is longer along
    one axis and shorter along another may have few enough patches, but would get positions of other places.
    """
    if any(side > limit for side, limit in zip(array.shape[1:-1], sides, strict=True)):
        limit = tuple(sides) if len(sides) > 1 else sides[0]
        raise ValueError(f"{what} of shape {array.shape}: expected at most {name}={limit} along each axis")
