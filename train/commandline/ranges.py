"""Allowed values of dataclass fields, declared in annotations; options and JSON files are checked against them.

`steps: Annotated[int, Range(1, 10)] | None` accepts None and integers from 1 to 10. A `float` without a range must be
finite, and a `str` must not be empty.
"""

import dataclasses
import math
import numbers
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from train.errors import UserError, shortened


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of numbers.

    Attributes:
        low: Smallest number.
        high: Largest number.
        open_low: Exclude `low` itself.
        open_high: Exclude `high` itself.
        or_zero: Also allow 0, which often means off.
    """

    low: int | float
    high: int | float
    open_low: bool = False
    open_high: bool = False
    or_zero: bool = False

    def __contains__(self, number: int | float) -> bool:
        above = self.low < number if self.open_low else self.low <= number
        below = number < self.high if self.open_high else number <= self.high
        return (above and below) or (self.or_zero and number == 0)

    def __str__(self) -> str:
        low, high = (f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in (self.low, self.high))
        if not self.open_low and not self.open_high:
            return f"{'0 or ' if self.or_zero else ''}from {low} to {high}"
        return f"{'above' if self.open_low else 'at least'} {low} and {'below' if self.open_high else 'at most'} {high}"


ANY = Range(-math.inf, math.inf, open_low=True, open_high=True)  # no range contains NaN or an infinity


def hints(kind: type) -> dict[str, Any]:
    """The annotation of each field of a dataclass, with its range."""
    return typing.get_type_hints(kind, include_extras=True)


def inner_types(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of any other type, the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def accepts(hint: Any, value: Any) -> bool:
    """Whether a field annotated as `hint` may have `value`.

    Supports None, bool, int, float, str, Path, Literal, tuples, unions, and int or float annotated with a Range.
    """
    kind, limits = _limits(hint)
    if kind in (int, float):
        allowed = (int,) if kind is int else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool) and value in limits
    if kind is numbers.Real:  # including NaN and infinities, but no integer too large for a float
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (isinstance(value, float) or abs(value) <= sys.float_info.max)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return any(accepts(part, value) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(each) == len(value) and all(map(accepts, each, value))
    if kind in (None, types.NoneType):
        return value is None
    return isinstance(value, kind) and not (kind is str and (not value or "\0" in value))


def most_values(hint: Any) -> int | float:
    """The largest number of values that an option annotated as `hint` accepts."""
    kind, _ = _limits(hint)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return max(map(most_values, parts))
    if origin is tuple:
        return math.inf if parts[-1] is Ellipsis else len(parts)
    return 1


def readable(hint: Any, texts: tuple[str, ...]) -> bool:
    """Whether texts from the command line can be parsed as `hint`. Ranges are not checked."""
    if any(not text or "\0" in text for text in texts):
        return False
    kind, _ = _limits(hint)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return any(readable(part, texts) for part in parts)
    if origin is tuple:
        each = parts[:1] * len(texts) if parts[-1] is Ellipsis else parts
        if not 0 < len(each) == len(texts):
            return False
        return all(readable(part, (text,)) for part, text in zip(each, texts, strict=True))
    if len(texts) != 1:
        return False
    if kind in (None, types.NoneType):
        return texts == ("None",)
    if origin is Literal:
        return texts[0] in map(str, parts)
    try:
        kind(texts[0])
    except ValueError:
        return False
    return True


def expected(hint: Any) -> str:
    """Describe the values that `hint` accepts, to follow "it must be"."""
    kind, limits = _limits(hint)
    if kind in (int, float):
        number = "a whole number" if kind is int else "a number"
        return number if limits is ANY else f"{number} {limits}"
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(expected(part) for part in parts if part is not types.NoneType)
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin is tuple and parts[-1] is Ellipsis:
        return f"one or more values, each {expected(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} values, each {expected(parts[0])}"
    words = {str: "text that is not empty", bool: "true or false", Path: "a path", numbers.Real: "a number or NaN"}
    return words.get(kind, str(kind))


def violations(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (name, value, expected values) for each invalid field of a dataclass, including nested ones."""
    for name, hint in hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from violations(value, f"{prefix}{name}.")
        elif not accepts(hint, value):
            yield f"{prefix}{name}", value, expected(hint)


def check_values(config: Any, prefix: str = "") -> None:
    """Raises UserError for the first invalid field of a dataclass, including nested ones."""
    for name, value, wanted in violations(config, prefix):
        option = name.replace("_", "-")
        raise UserError(f"--{option} is {shortened(value)}; it must be {wanted}")


def _limits(hint: Any) -> tuple[Any, Range]:
    """A type without its annotations, and the range in them."""
    if typing.get_origin(hint) is not Annotated:
        return hint, ANY
    kind, *annotations = typing.get_args(hint)
    return kind, next((a for a in annotations if isinstance(a, Range)), ANY)
