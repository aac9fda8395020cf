"""Checksums of a checkpoint: written just before it appears under its final name, compared before it is read.

Orbax notices damage in its own small files, but the parameters' bytes it takes as they come. An object store checks
what it hands out, so of files there only the sizes are compared.
"""

import hashlib
import json
import os
from collections.abc import Iterator

from etils import epath

from train.files import is_remote

FILE = "checksums.json"
# Written at the moment of completion, after the checksums, and read for nothing that a run needs.
LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")


def seal(folder: epath.Path) -> None:
    """Write the checksums of all that is in `folder`."""
    sums = {name: _checksum(folder / name) for name in _files(folder) if name not in (FILE, *LATE)}
    (folder / FILE).write_text(json.dumps(sums, indent=0))


def damage(folder: os.PathLike | str, only: str = "") -> str | None:
    """What is wrong with a folder that was sealed, in words; None: nothing. `only`: of files below that folder."""
    folder = epath.Path(folder)
    try:
        sums = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return f"{FILE} cannot be read"
    for name, expected in sums.items():
        if name.startswith(only):
            try:
                if _checksum(folder / name) != expected:
                    return f"{name} is not as it was written"
            except OSError as error:
                return f"{name} cannot be read: {error.strerror or error}"
    return None


def _files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name


def _checksum(file: epath.Path) -> str:
    if is_remote(file):
        return f"{file.stat().length} bytes"
    with open(os.fspath(file), "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
