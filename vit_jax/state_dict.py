"""State dicts of torch, as files and libraries wrap them: nested in a checkpoint, or with a prefix before each name."""

import collections
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from vit_jax.printable import printable
from vit_jax.torch_file import load_torch_file

StateDict = Mapping[str, Any]

_MOST_LINES = 20
_DEEPEST = 6  # parts of a name before the model's own, as in "state_dict.module.backbone."
_LONGEST = 1000  # characters of a name, which bounds the time for those of a hostile file


class PrefixError(ValueError):
    """The weights of a model have a prefix; `prefixes` lists those that would select them."""

    def __init__(self, source: str, model: str, prefixes: list[str]):
        self.prefixes = prefixes
        self.found = (
            f"{source} holds the weights of {model} under {' and '.join(f'{printable(p)!r}' for p in prefixes)}"
        )
        argument = "state_dict" if source == "state_dict" else repr(source)
        super().__init__(f"{self.found}: pass vit_jax.convert.select({argument}, {printable(prefixes[0])!r})")


def select(state_dict: StateDict | str | os.PathLike, prefix: str) -> dict[str, Any]:
    """The part of a checkpoint whose names begin with `prefix`, without it.

    A dict within a dict counts as names joined by dots: prefix "model.module." selects what `{"model": {"module.x":
    ...}}` and `{"model.module.x": ...}` hold.

    Args:
        state_dict: Mapping of names to tensors and to further such mappings, or path of a file that holds one.
        prefix: Beginning of the names; a dot at its end may be left out.

    Raises:
        ValueError: If no name begins with `prefix`, or two are the same without it.
    """
    source, state = named_state_dict(state_dict)
    selected = {}
    for key, value in _below(state, f"{prefix.removesuffix('.')}." if prefix else ""):
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
    """The name of `state_dict` in messages, and the mapping, read from its file if it is a path."""
    if isinstance(state_dict, str | os.PathLike):
        return printable(os.fspath(state_dict), _LONGEST), load_torch_file(state_dict)
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise ValueError(f"state_dict is a {kind}: expected a mapping of names to tensors, or a path")
    return "state_dict", state_dict


def check_names(source: str, state: Mapping, model: str, expected: Collection[str]) -> None:
    """Raises ValueError unless `state` maps names to tensors, and PrefixError if those of `model` have a prefix.

    `expected` are the names that the model needs.
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
                f"nowhere in it are the names of {model}, such as {some!r}"
            )


def _prefixes(state: Mapping, expected: Collection[str]) -> list[str]:
    """Prefixes under which at least half of the `expected` names are found, and more of them than without a prefix."""
    counts = collections.Counter()
    for name in _names(state, "", set()):
        start = 0
        for _ in range(_DEEPEST + 1):
            if name[start:] in expected:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1
            if not start:
                break
    least = max(len(expected) / 2, counts[""] + 1)
    return [prefix for prefix, count in counts.most_common(3) if prefix and count >= least]


def _names(state: Mapping, prefix: str, seen: set[int]) -> Iterator[str]:
    """Names of tensors, joined by dots; no dict is entered twice, as dicts that share dicts may hold endless names."""
    seen.add(id(state))
    for key, value in state.items():
        if not isinstance(key, str) or len(prefix) + len(key) > _LONGEST:
            continue
        if not isinstance(value, Mapping):
            yield prefix + key
        elif id(value) not in seen and prefix.count(".") < _DEEPEST:
            yield from _names(value, f"{prefix}{key}.", seen)


def list_mismatches(source: str, model: str, problems: Iterable[tuple[str, str]]) -> str:
    """An error message of at most twenty lines.

    Args:
        source: What the weights come from.
        model: What they do not fit.
        problems: Pairs of a kind, in words for several of it, and one line.
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
