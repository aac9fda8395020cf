"""Checks of a model's arguments at construction, and of its input in a call."""

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
_RATES += ("drop_path", "dropout_rate", "attention_dropout", "stochastic_depth_rate")


def check_arguments(model: nn.Module) -> None:
    """Check the common arguments that `model` has, such as `dim` or `dropout`, and freeze all fields.

    Lists become tuples, so that a model built from a configuration file can be hashed, as `jax.jit(model.apply)` does.

    Raises:
        ValueError: for a size below 1, a number of layers or classes below 0, a rate outside 0 to 1, a `pool` other
            than "cls" and "mean", or than those in the model's `pools`, or a `patch_size` that does not divide
            `image_size`, unless the model's `any_size` says that it need not.
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
        one_of("pool", model.pool, getattr(model, "pools", ("cls", "mean")))
    divided = {"image_size", "patch_size"} <= arguments.keys() and not getattr(model, "any_size", False)
    if divided and arguments.get("input_shape") is None:
        patch_grid(model.image_size, model.patch_size)
    elif arguments.get("image_size") is not None:
        pair("image_size", model.image_size)


def check_images(images: Array, channels: int, at_most: int | Sequence[int] | None = None) -> None:
    """Raise ValueError unless `images` is a floating-point array (b, height, width, channels).

    `at_most` is the model's `image_size` if its position table limits height and width.
    """
    check_array("images", images, "height, width", channels)
    if at_most is not None:
        check_fits("images", images, pair("image_size", at_most), "image_size")


def check_video(video: Array, channels: int | None = None) -> None:
    """Raise ValueError unless `video` is a floating-point array (b, frames, height, width, channels).

    `channels=None` accepts any number of channels.
    """
    check_array("video", video, "frames, height, width", channels)


def check_array(what: str, array: Array, axes: str, channels: int | None) -> None:
    """Raise ValueError unless `array` is a floating-point array (b, *axes, channels).

    Args:
        what: name of the array in the error message.
        array: the array.
        axes: names of the axes, separated by ", ".
        channels: number of channels, or None to accept any.
    """
    if array.ndim != axes.count(",") + 3 or channels not in (None, array.shape[-1]):
        expected = f"(batch, {axes}, channels)" + ("" if channels is None else f" with channels={channels}")
        raise ValueError(f"{what} of shape {array.shape}: expected {expected}")
    check_floating(what, array)


def check_fits(what: str, array: Array, sides: Sequence[int], name: str) -> None:
    """Raise ValueError if an axis of `array` (b, *axes, c) is longer than the position table covers.

    The number of patches alone is not enough: an input that is longer along one axis and shorter along another would
    get the positions of other places.

    Args:
        what: name of the array in the error message.
        array: the array.
        sides: length along each axis that the position table covers.
        name: the argument that `sides` comes from.
    """
    if any(side > limit for side, limit in zip(array.shape[1:-1], sides, strict=True)):
        limit = tuple(sides) if len(sides) > 1 else sides[0]
        raise ValueError(f"{what} of shape {array.shape}: expected at most {name}={limit} along each axis")


def frozen(value: Any) -> Any:
    """`value` with all lists replaced by tuples and all dicts by frozen dicts, at any depth."""
    if type(value) in (list, tuple):
        return tuple(map(frozen, value))
    if isinstance(value, Mapping):
        return FrozenDict({key: frozen(item) for key, item in value.items()})
    return value
