"""Parse KEY=VALUE arguments of models and objectives as Python literals, within limits.

The memory of a model is known only after it is built, so limits reject values for which building takes minutes or
overflows.
"""

import ast
import math
import re
from collections.abc import Iterator
from typing import Any

from train.errors import UserError, shortened

LONGEST = 1000  # characters of a value
DEEPEST = 8  # levels of nested tuples and dicts
LARGEST = 2**20  # absolute value of an integer, such as a size or a number of units

# Arguments that are numbers of modules; large values take minutes to compile.
REPEATED = re.compile(r"(^|_)(depths?|layers|loops?|looped_blocks|block_repeats|stages|branches|orders|views)$")
MOST_REPEATED = 256


def parse_arguments(option: str, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Parse KEY=VALUE strings.

    Args:
        option: The command-line option that gave the strings, for messages.
        pairs: The strings.

    Returns:
        Values by key: Python literals, or the text itself if it is not a literal.

    Raises:
        UserError: If a string is not KEY=VALUE, or a value is beyond the limits of this module.
    """
    arguments = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{option} {shortened(pair)!r}: expected KEY=VALUE, as in depth=6")
        if len(value) > LONGEST:
            raise UserError(f"{option} {key}: its value has {len(value):,} characters; at most {LONGEST:,} are read")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
        except (MemoryError, RecursionError, TypeError) as error:
            raise UserError(f"{option} {shortened(pair)!r}: its value is not a Python literal ({error})") from error
        if problem := _problem(key, arguments[key]):
            raise UserError(f"{option} {shortened(pair)!r}: {problem}")
    return arguments


def _problem(key: str, value: Any) -> str | None:
    """The reason to refuse `value`, or None."""
    try:
        leaves = list(_leaves(value))
    except RecursionError:
        return f"its value is nested more than {DEEPEST} deep"
    numbers = [leaf for leaf in leaves if isinstance(leaf, int | float) and not isinstance(leaf, bool)]
    if any(isinstance(leaf, complex) for leaf in leaves) or not all(map(_is_finite, numbers)):
        return "expected finite numbers"
    whole = [number for number in numbers if isinstance(number, int)]
    if any(abs(number) > LARGEST for number in whole):
        return f"whole numbers are at most {LARGEST:,}"
    if REPEATED.search(key) and sum(map(abs, whole)) > MOST_REPEATED:
        return f"expected at most {MOST_REPEATED}"
    return None


def _is_finite(number: int | float) -> bool:
    return isinstance(number, int) or math.isfinite(number)


def _leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    """All leaves of nested tuples, lists, sets and dicts. Raises RecursionError beyond DEEPEST levels."""
    if depth > DEEPEST:
        raise RecursionError
    if isinstance(value, dict):
        value = (*value, *value.values())
    if isinstance(value, tuple | list | set):
        for part in value:
            yield from _leaves(part, depth + 1)
    else:
        yield value
