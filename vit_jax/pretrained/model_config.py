"""The config.json of a model that is not timm's: the name and the arguments with which `create_model` builds it.

Beside them stands `pretrained_cfg`, as in timm's files, if images have three channels or one.
"""

import json
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.printable import printable
from vit_jax.registry import argument_names, create_model

KEY = "vit_jax"

_PLAIN = (str, int, float, bool, type(None))


def write_model(
    name: str, model: nn.Module, input_shape: tuple[int, ...], preprocess: Preprocessing | None
) -> dict[str, Any]:
    """Return the content of config.json that `read_model` reads.

    Args:
        name: "NAME", "NAME/PRESET" or the name of a network of torchvision; gives the arguments that are modules.
        model: the model.
        input_shape: shape of an input without the batch axis.
        preprocess: how images become inputs, if that is known.

    Raises:
        ValueError: if JSON cannot express an argument in which `model` differs from `name`.
    """
    arguments = {key: _plain(getattr(model, key)) for key in argument_names(type(model)) if _is_plain(model, key)}
    arguments = json.loads(json.dumps(arguments))
    if create_model(name, **arguments) != model:
        raise ValueError(f"{name} has arguments that config.json cannot hold: save its weights with to_torch")
    config = {KEY: {"model": name, "arguments": arguments, "input_shape": list(input_shape)}}
    return config if preprocess is None else config | {"pretrained_cfg": preprocess.to_config()}


def read_model(config: Mapping[str, Any], file: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the model that config.json describes, and the shape of an input without the batch axis.

    Raises:
        ValueError: for an invalid value; the message names `file`.
    """
    entry = config[KEY]
    kinds = dict(model=str, arguments=dict, input_shape=list)
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"{file}: {KEY} is {printable(repr(entry), 100)}: expected model, arguments and input_shape")
    shape = entry["input_shape"]
    if not shape or not all(type(side) is int and 0 < side <= 2**14 for side in shape):
        raise ValueError(f"{file}: input_shape is {printable(repr(shape), 100)}: expected numbers from 1 to {2**14:,}")
    try:
        return create_model(entry["model"], **entry["arguments"]), tuple(shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {printable(error, 300)}") from error


def _is_plain(model: nn.Module, name: str) -> bool:
    try:
        _plain(getattr(model, name))
    except TypeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """`value` with lists and dicts in place of tuples and frozen dicts. Raises TypeError for what JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, _PLAIN):
        raise TypeError(f"{value!r} is not of JSON")
    return value
