"""Paths in a config: make them absolute, and tell folders of published weights from runs."""

import dataclasses
import os
import re

from train.config import CHECKPOINTS, NO_CACHE, Config
from train.data_kinds import with_path

MOST_BYTES = 2**20  # of a config.json

OF_TEACHERS = (CHECKPOINTS, "config.json")  # a folder without either may have the name of a model


def absolute_path(path: str) -> str:
    """The absolute path, with `~` expanded; URLs such as gs://BUCKET/FOLDER stay unchanged."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def is_published_folder(path: str) -> bool:
    """Whether `path` is a local folder with a config.json that is not that of a run, which has the key "dataset"."""
    try:
        with open(os.path.join(os.path.expanduser(path), "config.json"), "rb") as file:
            return b'"dataset":' not in file.read(MOST_BYTES)
    except (OSError, ValueError):
        return False


def with_absolute_paths(config: Config) -> Config:
    """Make all input paths of `config` absolute, so that it does not depend on the current folder.

    Paths that do not exist stay unchanged, because they may be names of published weights.
    """
    found = lambda path: absolute_path(path) if path and os.path.exists(os.path.expanduser(path)) else path
    data_path = lambda path: absolute_path(path) if re.search(r"[{*?\[]", path) else found(path)  # patterns of shards
    data, distill, cache = config.data, config.distill, config.compilation_cache
    teacher = distill.teacher
    if teacher and any(os.path.exists(os.path.join(os.path.expanduser(teacher), name)) for name in OF_TEACHERS):
        teacher = absolute_path(teacher)
    return dataclasses.replace(
        config,
        model=absolute_path(config.model) if is_published_folder(config.model) else config.model,
        init=found(config.init),
        init_from=found(config.init_from),
        compilation_cache=cache if cache in (None, NO_CACHE) else absolute_path(cache),
        data=dataclasses.replace(data, name=with_path(data.name, data_path), dir=found(data.dir)),
        distill=dataclasses.replace(distill, teacher=teacher, weights=found(distill.weights)),
    )
