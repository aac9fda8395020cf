"""Arguments that many models take, checked and brought to one form."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn
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


def check_sides(name: str, size: int | Sequence[int], fits: Callable[[int], bool]) -> None:
    """Raises ValueError, naming the nearest sides that do, unless the height and the width of `size` fit."""
    for side in pair(name, size):
        if not fits(side):
            below, above = range(side - 1, 0, -1), range(side + 1, side + 4096)
            near = [str(s) for sides in (below, above) if (s := next(filter(fits, sides), None))]
            raise ValueError(f"{name}={size!r}: expected sides such as {' or '.join(near) or 'none: no size fits'}")


def check_floating(what: str, array: Array) -> None:
    """Raises ValueError, calling it `what`, unless `array` is of floating point: models compute in its type."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{what} of dtype {array.dtype}: expected floating-point numbers, such as float32")
