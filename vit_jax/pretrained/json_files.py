"""Reads the JSON files beside published weights. They and their folders are untrusted."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from vit_jax.printable import printable

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"

_MOST_BYTES = 2**24  # names and descriptions of 21,841 classes take four million
_MOST_NESTED = 20
_TYPES = {  # of fields that readers rely on, in the files of timm and of transformers
    str: ("architecture", "model_type", "global_pool", "hidden_act", "image_processor_type"),
    int: ("num_classes", "num_features", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    dict: ("pretrained_cfg", "model_args", "vision_config", "id2label", "weight_map"),
    list: ("architectures", "image_mean", "image_std"),
}


def load_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object, such as config.json, preprocessor_config.json, or the index of weights in several files.

    Raises:
        ValueError: in one line, if the file is not a JSON object of reasonable size and depth, contains NUL characters
            or numbers that are not finite, has a field of another type than such files have, or is not a regular file
            of its folder.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    shown = printable(path, 1000)
    check_is_inside(path.parent, path)
    check_is_regular(path)
    with open(path, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{shown} has more than {_MOST_BYTES:,} bytes: expected a small JSON file")
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown} is not valid JSON ({type(error).__name__}: {printable(error, 100)})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{shown} holds a {type(value).__name__}: expected a JSON object")
    _check_values(shown, value)
    for kind, names in _TYPES.items():
        for name in names:
            entry = value.get(name)
            if entry is not None and type(entry) is not kind:
                raise ValueError(f"{shown}: {name} is {printable(repr(entry))}, expected {kind.__name__}")
    return value


def load_config(folder: str | os.PathLike, name: str = CONFIG) -> dict[str, Any] | None:
    """Read a JSON file of a folder as `load_json` does, or return None if the folder has none of this name."""
    path = Path(folder) / name
    return load_json(path) if os.path.lexists(path) else None


def _refuse(constant: str):
    raise ValueError(f"{constant} is not a number")


def _check_values(shown: str, value: dict) -> None:
    """Check depth and strings level by level, as recursion could overflow the stack."""
    level, depth = [value], 0
    while level:
        if any(isinstance(entry, str) and "\0" in entry for entry in level):
            raise ValueError(f"{shown} contains a NUL character")
        if depth > _MOST_NESTED:
            raise ValueError(f"{shown} is nested more than {_MOST_NESTED} levels deep")
        lists = [entry for entry in level if isinstance(entry, list)]
        dicts = [entry for entry in level if isinstance(entry, dict)]
        level = [item for entry in lists for item in entry]
        level += [item for entry in dicts for pair in entry.items() for item in pair]
        depth += 1


def check_is_regular(path: Path) -> None:
    """Raise ValueError for pipes and devices, whose reading may never end, and for folders."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        kind = "a directory" if path.is_dir() else "a pipe, a device or a socket"
        raise ValueError(f"{printable(path, 1000)} is {kind}, expected a file")


def check_is_inside(folder: Path, path: Path) -> None:
    """Raise ValueError if `path` leads out of `folder` through a link.

    Links in the hub's cache may lead to other folders of the cache: files of a snapshot are links to blobs.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        root = root.parents[2]
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"{printable(path, 1000)} is a link out of the folder; copy the file into the folder instead")
