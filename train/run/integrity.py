"""Checksums of a checkpoint: written just before it gets its final name, compared before it is read.

Orbax detects damage in its metadata, but not in the bytes of the parameters. Object stores verify contents themselves,
so only the sizes of remote files are compared.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import PurePath
from typing import NamedTuple

from etils import epath

from train.run.files import is_remote, open_regular, read_small
from train.run.json_files import parse_json

FILE = "checksums.json"
# Orbax writes these files after the checksums. They contain nothing that a run uses.
LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")


class Seal(NamedTuple):
    """The step of a complete checkpoint, and the SHA-256 of its files by name."""

    step: int
    files: dict[str, str]


def seal(folder: epath.Path, step: int) -> None:
    """Write the checksums of all files in `folder`, the checkpoint of `step`."""
    sums = {name: _checksum(folder / name) for name in files_below(folder) if name not in (FILE, *LATE)}
    (folder / FILE).write_text(json.dumps(Seal(step, sums)._asdict(), indent=0))


def damage(folder: os.PathLike | str, only: str = "") -> str | None:
    """Describe the first defect of a sealed checkpoint, or return None. `only` checks just names with that prefix.

    Only files found in the folder are opened, whatever names the checksums contain.
    """
    folder = epath.Path(folder)
    try:
        found = set(files_below(folder))
        sealed = parse_json(read_small(folder / FILE), Seal)
    except OSError as error:
        return f"{_name(error, folder)} cannot be read: {error.strerror or error}"
    except ValueError as error:
        return f"{FILE} cannot be read: {error}"
    if str(sealed.step) != folder.name:
        return f"it is the checkpoint of step {sealed.step}, renamed"
    for name, expected in sealed.files.items():
        if not name.startswith(only):
            continue
        if name not in found:
            return f"{name!r} is missing"
        try:
            if _checksum(folder / name) != expected:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def files_below(folder: PurePath) -> Iterator[str]:
    """Names of all files below `folder`. Raises OSError if there is anything but files and folders, such as a link."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        for entry in sorted((folder / prefix).iterdir(), key=lambda entry: entry.name):
            name = prefix + entry.name
            mode = 0 if is_remote(entry) else os.lstat(entry).st_mode
            if entry.is_dir() if is_remote(entry) else stat.S_ISDIR(mode):
                folders.append(f"{name}/")
            elif is_remote(entry) or stat.S_ISREG(mode):
                yield name
            else:
                raise OSError(0, "it is neither a regular file nor a folder", os.fspath(entry))


def _name(error: OSError, folder: epath.Path) -> str:
    return os.path.relpath(error.filename, folder) if error.filename else FILE


def _checksum(file: epath.Path) -> str:
    if is_remote(file):
        return f"{file.stat().length} bytes"
    with open(open_regular(file), "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
