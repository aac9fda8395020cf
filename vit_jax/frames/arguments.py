"""Checks of a model's arguments at construction, and of its input when it is called."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
from flax.core import FrozenDict
from jax import Array

from vit_jax.layers.check import at_least, check_floating, one_of, pair, patch_grid

_AT_LEAST = dict(
    dim=1, heads=1, dim_head=1, mlp_dim=1, channels=1, depth=0, cls_depth=0, num_classes=0, num_register_tokens=0
)
_RATES = ("dropout", "emb_dropout", "layer_dropout", "attn_dropout", "ff_dropout")
_RATES += ("dropout_rate", "attention_dropout", "stochastic_depth_rate")


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


def check_fits(what: str, array: Array, sides: Sequence[int], name: str) -> None:
    """Raises ValueError, calling it `what`, when an axis of `array` (b, *axes, c) is longer than that of `sides`.

    `sides` is the value of the argument `name`: the size that the position table covers. An input that is longer along
    one axis and shorter along another may have few enough patches, but would get positions of other places.
    """
    if any(side > limit for side, limit in zip(array.shape[1:-1], sides, strict=True)):
        limit = tuple(sides) if len(sides) > 1 else sides[0]
        raise ValueError(f"{what} of shape {array.shape}: expected at most {name}={limit} along each axis")


def frozen(value: Any) -> Any:
    """`value` with tuples in place of lists and frozen dicts in place of dicts, at any depth."""
    if type(value) in (list, tuple):
        return tuple(map(frozen, value))
    if isinstance(value, Mapping):
        return FrozenDict({key: frozen(item) for key, item in value.items()})
    return value
