"""Parse KEY=VALUE arguments of models and objectives as Python literals, within limits.

The memory of a model is known only after it is built. These limits reject values for which building would take minutes
or overflow.
"""

import ast
import math
import re
from collections.abc import Iterator
from typing import Any

from train.errors import UserError, shortened

LONGEST = 1000  # characters of a value
DEEPEST = 8  # tuples and dicts in one another
LARGEST = 2**20  # sizes and numbers of units

# Arguments that count separately built modules; large values compile for minutes.
REPEATED = re.compile(r"(^|_)(depths?|layers|loops?|looped_blocks|block_repeats|stages|branches|orders|views)$")
MOST_REPEATED = 256


def parse_arguments(option: str, pairs: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE strings as a dict; values are Python literals, or else strings.

    Raises UserError for other forms, and for values beyond the limits of this file.
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
    """Why `value` is refused, or None."""
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
