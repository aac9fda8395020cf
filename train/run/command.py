"""The command lines that give a config, or a run."""

import dataclasses
import shlex
from typing import Any

from train.commandline.options import switch
from train.config import Config
from train.recipes import base_config
from train.run.stored import StoredRun


def commands_of(stored: StoredRun) -> list[str]:
    """The command that began a run, and one for each time that it became longer, in order."""
    longer = [{"steps": e.total, "extend": e.schedule, "extend_lr": e.lr} for e in stored.extensions]
    return [command_of(dataclasses.replace(stored.config, **changes)) for changes in ({}, *longer)]


def command_of(config: Config) -> str:
    """A `vit-jax train` command with the settings of `config`.

    A run stores its settings, in which published weights and defaults are filled in. The command can therefore be
    longer than the one that was typed, but it starts the same run.
    """
    chosen = base_config(None, config.model, config.data.name).recipe
    base = flat(base_config(config.recipe or chosen, config.model, config.data.name))
    words = [f"--model={config.model}", f"--data={config.data.name}"]
    if config.recipe not in (None, chosen):
        words.append(f"--recipe={config.recipe}")
    lists = []  # last, because they end where the next option begins
    for name, value in flat(config).items():
        if name in ("model", "data.name", "recipe") or value == base[name]:
            continue
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(switch(option, on=value))
        elif isinstance(value, tuple):
            lists += [option, *map(str, value)]
        else:
            words.append(f"{option}={value}")
    return shlex.join(["vit-jax", "train", *words, *lists])


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a dataclass and of those in it: {"optim.lr": 1e-3}."""
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        inner = dataclasses.is_dataclass(value)
        found |= flat(value, f"{prefix}{field.name}.") if inner else {f"{prefix}{field.name}": value}
    return found
