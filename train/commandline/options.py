"""Command-line parsing for all commands: a dataclass declares the options, and every error is reported in one line.

This module avoids slow imports, so that `--help` and errors in options appear immediately.
"""

import contextlib
import dataclasses
import difflib
import io
import math
import os
import re
import sys
import typing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tyro

from train.commandline.ranges import check_values, expected, hints, inner_types, most_values, readable
from train.config import Side
from train.data_kinds import KINDS
from train.errors import UserError, shortened

T = TypeVar("T")


class Group(NamedTuple):
    """An option and the values that follow it; values without an option have the option ""."""

    option: str
    values: tuple[str, ...]


def prog(command: str) -> str:
    """The program name in the usage line of `command`."""
    return f"vit-jax {command}" if Path(sys.argv[0]).stem == "vit-jax" else f"python -m train.{MODULES[command]}"


# The commands and what they do; `train.main` is the module of "train", and others have the command's name.
COMMANDS = {
    "train": "train a model, or continue a run",
    "predict": "predict the classes, labels or numbers of images",
    "evaluate": "evaluate a run or published weights on labelled images",
    "report": "write the report of a run again",
    "compare": "compare runs in a table and on a page",
    "probe": "measure the accuracy of an encoder's features",
    "convert": "convert weights between torch and Orbax",
    "export": "export a run for use without the trainer",
    "push": "publish a run on the Hugging Face hub",
    "plan": "estimate memory and time of a training step, also for absent devices",
    "prepare": "download a TFDS dataset and prepare it",
}
MODULES = {name: "main" if name == "train" else name for name in COMMANDS}


def read_options(kind: type[T], groups: list[Group], command: str, description: str, default: T | None = None) -> T:
    """Parse options into a dataclass; `--help` prints the help and exits.

    Args:
        kind: The dataclass. One field may be annotated as `tyro.conf.Positional`: it has no option.
        groups: The command line, from `split`.
        command: Name of the command, for the usage line.
        description: Description of the command, for the help.
        default: Values of fields that are not given; the defaults of `kind` if None.

    Raises:
        UserError: For an unknown or missing option, an invalid value, or a value out of range.
    """
    known = options(kind)
    groups = _with_positional(groups, known)
    check_known(groups, known)
    groups = _joined(groups, known)
    if default is None:
        _check_complete(groups, kind)
    for option, values in groups:  # otherwise tyro consumes the next option as a value
        if option not in HELP and known[option] is not bool and not readable(known[option], values):
            raise UserError(f"{option} is {shortened(' '.join(values))}; it must be {expected(known[option])}")
    arguments = [token for group in groups for token in _tokens(group)]
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            given = {} if default is None else {"default": default}
            config = tyro.cli(kind, args=arguments, prog=prog(command), description=description, **given)
    except SystemExit as ended:
        if not ended.code:
            raise
        box = re.sub(r"[│╭╮╰╯─]", " ", written.getvalue())
        raise UserError(shortened(" ".join(box.split()), 300)) from None
    check_values(config)
    return config


HELP = ("--help", "-h", "--tyro-print-completion", "--tyro-write-completion")


def expand_user(argv: list[str]) -> list[str]:
    """Expand `~` at the start of a path: ~/x, --option=~/x, folder:~/x. Shells expand only the first form."""
    kinds = "|".join(name for name, kind in KINDS.items() if kind.is_path)
    found = [re.fullmatch(rf"((?:--[\w.-]+=)?(?:(?:{kinds}):)?)(~.*)", arg, re.DOTALL) for arg in argv]
    return [m[1] + os.path.expanduser(m[2]) if m else arg for m, arg in zip(found, argv, strict=True)]


def split(argv: list[str], short: dict[str, str] | None = None) -> list[Group]:
    """Group a command line by option.

    In names of options, `_` becomes `-`; `~` at the start of a path becomes the home folder. Arguments after `--` are
    not options.

    Args:
        argv: The arguments.
        short: Full names of options by their short names.
    """
    groups: list[Group] = []
    tokens = iter(expand_user(argv))
    for token in tokens:
        if token == "--":
            groups += [Group("", (free,)) for free in tokens]
        elif token.startswith("--") or token == "-h":
            name, equals, value = token.partition("=")
            name = name.replace("_", "-")
            groups.append(Group((short or {}).get(name, name), (value,) if equals else ()))
        elif groups:
            groups[-1] = Group(groups[-1].option, (*groups[-1].values, token))
        else:
            groups.append(Group("", (token,)))
    return groups


def check_known(groups: list[Group], known: dict[str, Any]) -> None:
    """Raises UserError for an option that is not in `known`, or that has a wrong number of values."""
    for option, values in groups:
        if option in HELP:
            continue
        if option not in known:
            raise UserError(_unknown(option, values, known))
        if known[option] is bool and values:
            raise UserError(f"{option} takes no value; it was given {shortened(values[0])}")
        if not values and known[option] is not bool and not readable(known[option], values):
            raise UserError(f"{option} needs a value: {expected(known[option])}")


def last(groups: list[Group], option: str) -> str | None:
    """The last value of `option`; None if it was not given or has no value."""
    return next((group.values[0] for group in reversed(groups) if group.option == option and group.values), None)


def options(kind: type, prefix: str = "--") -> dict[str, Any]:
    """Annotations of a dataclass by option name; the name of a positional argument is in capitals."""
    found = {}
    for field, hint in hints(kind).items():
        name = _name(field, hint, prefix)
        if dataclasses.is_dataclass(hint):
            found |= options(hint, f"{name}.")
            continue
        found[name] = hint
        if hint is bool:
            found[switch(name, on=False)] = hint
    return found


def switch(option: str, *, on: bool) -> str:
    """The form of an option without a value that switches it on, or off: --data.x, --data.no-x."""
    prefix, dot, field = option.removeprefix("--").rpartition(".")
    return option if on else f"--{prefix}{dot}no-{field}"


def _name(field: str, hint: Any, prefix: str = "--") -> str:
    """The name of a field on the command line."""
    return field.upper() if tyro.conf.Positional in typing.get_args(hint) else prefix + field.replace("_", "-")


def _with_positional(groups: list[Group], known: dict[str, Any]) -> list[Group]:
    """Move values that no option accepts to the positional argument, if there is one, as the first group."""
    name = next((name for name in known if not name.startswith("-")), None)
    if name is None:
        return groups
    kept, free = [], []
    for option, values in groups:
        most = most_values(known[option]) if option in known else math.inf if option else 0
        taken = min(most, len(values))
        kept += [Group(option, values[:taken])] if option else []
        free += values[taken:]
    taken = min(most_values(known[name]), len(free))
    surplus = [Group("", tuple(free[taken:]))] if free[taken:] else []
    return [*([Group(name, tuple(free[:taken]))] if free else []), *kept, *surplus]


def _check_complete(groups: list[Group], kind: type) -> None:
    """Raises UserError if a required field of `kind` is missing, unless help is requested."""
    given = {group.option for group in groups}
    if given.intersection(HELP):
        return
    annotations = hints(kind)
    for field in dataclasses.fields(kind):
        option = _name(field.name, annotations[field.name])
        if field.default is field.default_factory is dataclasses.MISSING and option not in given:
            raise UserError(f"{option} is missing; it must be {expected(annotations[field.name])}")


def _joined(groups: list[Group], known: dict[str, Any]) -> list[Group]:
    """Merge repeated string lists, such as --model-args; duplicate a single number given for a (height, width) pair."""
    joined: dict[str, Group] = {}
    result = []
    for group in groups:
        types = inner_types(known.get(group.option))
        if tuple[Side, Side] in types and len(group.values) == 1 and group.values[0].isdecimal():
            group = Group(group.option, group.values * 2)
        if tuple[str, ...] in types and group.option in joined:
            index = result.index(joined[group.option])
            group = Group(group.option, (*joined[group.option].values, *group.values))
            result[index] = joined[group.option] = group
            continue
        joined[group.option] = group
        result.append(group)
    return result


def _tokens(group: Group) -> list[str]:
    """Arguments for tyro; a value that looks like an option is attached with `=`, or as a path gets `./` before it."""
    option, values = group
    if not option.startswith("-"):
        return [f"./{value}" if value.startswith("-") and value != "-" else value for value in values]
    if len(values) == 1 and (values[0].startswith("-") or not values[0]):
        return [f"{option}={values[0]}"]
    return [option, *values]


def _unknown(option: str, values: tuple[str, ...], known: dict[str, Any]) -> str:
    """The error message for an unknown option, with similar names."""
    if not option:
        return f"unexpected argument {shortened(values[0])}: options start with --"
    name = option.removeprefix("--").lower()
    near = [other for other in known if other.rpartition(".")[2].removeprefix("--") == name]
    if not near:
        ends = {other.rpartition(".")[2].removeprefix("--"): other for other in known}
        spelt = {other.removeprefix("--"): other for other in known}
        close = difflib.get_close_matches(name[:100], [*spelt, *ends], n=3, cutoff=0.7)
        near = list(dict.fromkeys(spelt.get(match) or ends[match] for match in close))
    hint = f"did you mean {' or '.join(near)}?" if near else "--help lists all options"
    return f"unknown option {shortened(option)}; {hint}"
