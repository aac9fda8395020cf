"""State dicts of torch that are nested in a checkpoint, or whose names have a prefix."""

import collections
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from vit_jax.printable import printable
from vit_jax.torch_file import load_torch_file

StateDict = Mapping[str, Any]

_MOST_LINES = 20
_DEEPEST = 6  # most parts of a prefix; "state_dict.module.backbone." has three
_LONGEST = 1000  # most characters of a name, which bounds the time that a hostile file can take


class PrefixError(ValueError):
    """The names of a model's weights have a prefix. `prefixes` lists the prefixes that `select` can remove."""

    def __init__(self, source: str, model: str, prefixes: list[str]):
        self.prefixes = prefixes
        self.found = (
            f"{source} holds the weights of {model} under {' and '.join(f'{printable(p)!r}' for p in prefixes)}"
        )
        argument = "state_dict" if source == "state_dict" else repr(source)
        super().__init__(f"{self.found}: pass vit_jax.convert.select({argument}, {printable(prefixes[0])!r})")


def select(state_dict: StateDict | str | os.PathLike, prefix: str) -> dict[str, Any]:
    """Return the part of a checkpoint whose names begin with `prefix`, with the prefix removed.

    Names of nested dicts are joined by dots: the prefix "model.module." selects "x" from `{"model": {"module.x": ...}}`
    and from `{"model.module.x": ...}`.

    Args:
        state_dict: mapping of names to tensors or to further such mappings, or the path of a file that contains one.
        prefix: beginning of the names; a dot at its end may be left out. For names with slashes, it ends in one.

    Raises:
        ValueError: if no name begins with `prefix`, or two names are the same without it.
    """
    source, state = named_state_dict(state_dict)
    selected = {}
    beginning = prefix if prefix.endswith("/") or not prefix else f"{prefix.removesuffix('.')}."
    for key, value in _below(state, beginning):
        if key in selected:
            raise ValueError(f"{source} holds {printable(key)!r} twice under {prefix!r}")
        selected[key] = value
    if not selected:
        some = ", ".join(repr(printable(key, 40)) for key in list(state)[:5]) or "none"
        raise ValueError(f"{source} has no names that begin with {prefix!r}; its names: {some}, ...")
    return selected


def _below(state: Mapping, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if not isinstance(key, str):
            continue
        if key.startswith(prefix):
            yield key.removeprefix(prefix), value
        elif isinstance(value, Mapping) and prefix.startswith(f"{key}."):
            yield from _below(value, prefix.removeprefix(f"{key}."))


def named_state_dict(state_dict: StateDict | str | os.PathLike) -> tuple[str, Mapping]:
    """Return the name of `state_dict` for error messages, and the mapping, read from the file if it is a path."""
    if isinstance(state_dict, str | os.PathLike):
        return printable(os.fspath(state_dict), _LONGEST), load_torch_file(state_dict)
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise ValueError(f"state_dict is a {kind}: expected a mapping of names to tensors, or a path")
    return "state_dict", state_dict


def check_names(source: str, state: Mapping, model: str, expected: Collection[str]) -> None:
    """Check that `state` maps names to tensors, and that the names have no prefix.

    Args:
        source: name of `state` in error messages.
        state: the state dict.
        model: name of the model in error messages.
        expected: the names that the model needs.

    Raises:
        PrefixError: if the names that the model needs have a prefix.
        ValueError: if a name is not a string, or a value is a dict.
    """
    if prefixes := _prefixes(state, expected):
        raise PrefixError(source, model, prefixes)
    for key, value in state.items():
        if not isinstance(key, str):
            raise ValueError(f"{source} has the key {printable(key)} ({type(key).__name__}), expected names of tensors")
        if isinstance(value, Mapping):
            some = printable(min(expected, default=""))
            raise ValueError(
                f"{source} holds a dict under {printable(key)!r}, expected a tensor; "
                f"the names of {model}, such as {some!r}, are nowhere in it"
            )


def _prefixes(state: Mapping, expected: Collection[str]) -> list[str]:
    """Prefixes under which at least half of the `expected` names are found, and more than without any prefix."""
    counts = collections.Counter()
    for name in nested_names(state):
        start = 0
        for _ in range(_DEEPEST + 1):
            if name[start:] in expected:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1
            if not start:
                break
    least = max(len(expected) / 2, counts[""] + 1)
    return [prefix for prefix, count in counts.most_common(3) if prefix and count >= least]


def nested_names(state: Mapping) -> Iterator[str]:
    """The names of all tensors in `state`; those of nested mappings are joined by dots, as `select` does."""
    return _names(state, "", set())


def _names(state: Mapping, prefix: str, seen: set[int]) -> Iterator[str]:
    """Names of tensors, joined by dots. Each dict is read once: dicts that share dicts can hold endless names."""
    seen.add(id(state))
    for key, value in state.items():
        if not isinstance(key, str) or len(prefix) + len(key) > _LONGEST:
            continue
        if not isinstance(value, Mapping):
            yield prefix + key
        elif id(value) not in seen and prefix.count(".") < _DEEPEST:
            yield from _names(value, f"{prefix}{key}.", seen)


def list_mismatches(source: str, model: str, problems: Iterable[tuple[str, str]]) -> str:
    """Error message of at most twenty lines that lists mismatches by kind.

    Args:
        source: name of the file or argument with the weights.
        model: name of the model.
        problems: pairs of a kind of mismatch, in the plural, and a line that describes one.
    """
    kinds = collections.defaultdict(list)
    for kind, line in sorted(problems):
        kinds[kind].append(line)
    total = sum(map(len, kinds.values()))
    lines = [f"{source} does not fit {model}, {total} mismatches:"]
    shown = total if total < _MOST_LINES else (_MOST_LINES - 1) // len(kinds) - 1
    for kind, of_kind in kinds.items():
        lines += [f"  {line}" for line in of_kind[:shown]]
        if of_kind[shown:]:
            lines.append(f"  ... and {len(of_kind) - shown:,} more {kind}")
    return "\n".join(lines)
