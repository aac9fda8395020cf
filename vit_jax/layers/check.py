"""Checks of arguments that many models take. Some also return the argument in a uniform form."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import Array


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return `value` as (height, width); a single number is used for both.

    Raises ValueError, naming the argument `name`, unless both are positive integers.
    """
    sides = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{name}={value!r}: expected a positive integer or a pair (height, width) of them")
    return sides


def patch_grid(
    image_size: int | Sequence[int], patch_size: int | Sequence[int], name: str = "patch_size"
) -> tuple[int, int]:
    """Return the rows and columns of patches in an image.

    Raises ValueError unless the patch divides the image in height and width. `name` is the name of `patch_size` in the
    error message.
    """
    height, width = pair("image_size", image_size)
    patch_height, patch_width = pair(name, patch_size)
    if height % patch_height or width % patch_width:
        raise ValueError(
            f"image_size={image_size!r}: expected multiples of {name}={patch_size!r}, in height and in width"
        )
    return height // patch_height, width // patch_width


def patch_count(name: str, size: int, patch_name: str, patch_size: int) -> int:
    """Return the number of patches along one axis.

    Raises ValueError unless `patch_size` divides `size`. `name` and `patch_name` are their names in the error message.
    """
    if patch_size < 1:
        raise ValueError(f"{patch_name}={patch_size!r}: expected at least 1")
    if size < 1 or size % patch_size:
        raise ValueError(f"{name}={size!r}: expected a positive multiple of {patch_name}={patch_size!r}")
    return size // patch_size


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")


def at_least(model: object, **minimums: int) -> None:
    """Raise ValueError if an argument of `model` is below its minimum, or any of its numbers if it is a sequence."""
    for name, minimum in minimums.items():
        value = vars(model).get(name)
        numbers = value if isinstance(value, Sequence) else (value,)
        if any(number is not None and number < minimum for number in numbers):
            raise ValueError(f"{name}={value!r}: expected at least {minimum}")


def expect(model: nn.Module, name: str, holds: bool, expected: str) -> None:
    """Raise ValueError unless `holds`. The message says what was `expected` of the argument `name` of `model`."""
    if not holds:
        raise ValueError(f"{name}={getattr(model, name)!r}: expected {expected}")


def check_sides(name: str, size: int | Sequence[int], fits: Callable[[int], bool]) -> None:
    """Raise ValueError unless the height and the width of `size` fit. The message suggests the nearest that do."""
    for side in pair(name, size):
        if not fits(side):
            below, above = range(side - 1, 0, -1), range(side + 1, side + 4096)
            near = [str(s) for sides in (below, above) if (s := next(filter(fits, sides), None))]
            raise ValueError(f"{name}={size!r}: expected sides such as {' or '.join(near) or 'none: no size fits'}")


def check_floating(what: str, array: Array) -> None:
    """Raise ValueError unless `array`, called `what`, is floating point, as models compute in the dtype of inputs."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{what} of dtype {array.dtype}: expected floating-point numbers, such as float32")
