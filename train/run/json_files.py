"""Read and validate the small JSON files of a run, which may be damaged or come from an untrusted source.

A dataclass or NamedTuple declares the content of a file; its annotations give types and ranges.
"""

import dataclasses
import json
import os
import reprlib
import typing
from typing import Any

from train.commandline.ranges import accepts, expected
from train.errors import UserError
from train.run.files import read_small


def read_json(path: os.PathLike | str, kind: Any) -> Any:
    """Read a `kind` from a file. Raises UserError naming the file and the invalid key."""
    try:
        return parse_json(read_small(path), kind)
    except OSError as error:
        raise UserError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{os.fspath(path)} cannot be read: {error}") from error


def parse_json(content: str | bytes, kind: Any) -> Any:
    """Parse a `kind` from JSON. Raises ValueError naming the invalid key."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("its values are nested too deep") from None
    return from_json(value, kind)


def from_json(value: Any, kind: Any, name: str = "") -> Any:
    """Convert parsed JSON to a type: the inverse of `dataclasses.asdict` or `_asdict`.

    Args:
        value: The parsed JSON. Keys with a default may be missing.
        kind: A dataclass, a NamedTuple, a dict[str, ...], a tuple of these, or a type that `train.commandline.ranges`
            supports.
        name: Name of the value, for messages.

    Raises:
        ValueError: If the value is invalid; the message names the key.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return {key: from_json(inner, parts[1], _below(name, key)) for key, inner in _mapping(value, name).items()}
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return _record(_mapping(value, name), kind, name)
    if origin is tuple and isinstance(value, list):
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(each) != len(value):
            raise ValueError(f"{name} is {reprlib.repr(value)}; it must be {len(each)} values")
        return tuple(from_json(inner, each[i], f"{name}[{i}]") for i, inner in enumerate(value))
    leaf = tuple(value) if isinstance(value, list) else value  # in a union
    if not accepts(kind, leaf):
        raise ValueError(f"{name or 'it'} is {reprlib.repr(value)}; it must be {expected(kind)}")
    return leaf


def _record(value: dict[str, Any], kind: Any, name: str) -> Any:
    hints = typing.get_type_hints(kind, include_extras=True)
    if unknown := value.keys() - hints.keys():
        raise ValueError(f"{_below(name, min(unknown))} is not a key of this version")
    optional = getattr(kind, "_field_defaults", hints)  # all our dataclasses have defaults for all fields
    if missing := hints.keys() - value.keys() - optional.keys():
        raise ValueError(f"{_below(name, min(missing))} is missing")
    return kind(**{key: from_json(inner, hints[key], _below(name, key)) for key, inner in value.items()})


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name or 'it'} is {reprlib.repr(value)}; it must be an object with keys")
    return value


def _below(name: str, key: str) -> str:
    key = key if key.isidentifier() else reprlib.repr(key)
    return f"{name}.{key}" if name else key
