"""Fingerprints of a run's inputs (data and teacher), to detect changes between restarts.

File names are relative to the data folder, so that the folder may be moved.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from train.errors import UserError
from train.run.files import write_atomically
from train.run.json_files import read_json

FILE = "fingerprints.json"
ENTRIES, CHARACTERS = 50_000, 300_000  # most names that are stored, for messages about changed files


class Fingerprint(NamedTuple):
    """Identifies the examples of a split.

    Attributes:
        origin: Source of the examples, with its version if it has one.
        count: Number of examples.
        digest: SHA-256 of the examples' names or contents, in order.
        classes: For files: (number of examples, digest of their names) by class.
        names: For files: their names in order. `classes` and `names` are empty if too large to store.
    """

    origin: str
    count: int
    digest: str
    classes: dict[str, tuple[int, str]]
    names: tuple[str, ...]


def digest_of(parts: Iterable[bytes]) -> str:
    """SHA-256 of a sequence of byte strings, including their lengths."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8))
        total.update(part)
    return total.hexdigest()


def fingerprint_of_arrays(origin: str, count: int, arrays: Iterable[np.ndarray | jax.Array]) -> Fingerprint:
    """The fingerprint of `count` examples in memory."""
    return Fingerprint(origin, count, digest_of(np.asarray(array).tobytes() for array in arrays), {}, ())


def fingerprint_of_files(origin: str, files: Mapping[str, Sequence[str]]) -> Fingerprint:
    """The fingerprint of files by class; files without a class are listed under ""."""
    classes = {name: (len(members), digest_of(map(os.fsencode, members))[:16]) for name, members in files.items()}
    names = tuple(member for members in files.values() for member in members)
    digest = digest_of(os.fsencode(name) for pair in files.items() for name in (pair[0], *pair[1]))
    is_kept = lambda strings: len(strings) <= ENTRIES and sum(map(len, strings)) <= CHARACTERS
    kept = classes if is_kept(classes) and "" not in classes else {}
    return Fingerprint(origin, len(names), digest, kept, names if is_kept(names) else ())


def difference(there: Fingerprint, here: Fingerprint) -> str:
    """Describe how `here` differs from `there`; empty if they are equal."""
    if there.digest == here.digest:
        return ""
    found = []
    if there.origin != here.origin:
        found.append(f"{here.origin}, previously {there.origin}")
    if there.count != here.count:
        found.append(f"{here.count:,} examples, previously {there.count:,}")
    if there.names and here.names:
        then, now = set(there.names), set(here.names)
        found += [f"{len(names):,} added, such as {min(names)}" for names in (now - then,) if names]
        found += [f"{len(names):,} missing, such as {min(names)}" for names in (then - now,) if names]
    else:
        found += _changed_classes(there.classes, here.classes)
    return "; ".join(found) or "the same number of examples, but different ones or in a different order"


def _changed_classes(there: Mapping[str, tuple[int, str]], here: Mapping[str, tuple[int, str]]) -> list[str]:
    """Describe the first three classes whose examples differ, and count the others."""
    nothing = (0, "")
    changed = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    found = []
    for name in changed[:3]:
        more = here.get(name, nothing)[0] - there.get(name, nothing)[0]
        size = f"{abs(more):,} {'more' if more > 0 else 'fewer'}" if more else "as many, but with other names"
        found.append(f"class {name!r} has {size}")
    if changed[3:]:
        found.append(f"{len(changed) - 3:,} more classes differ")
    return found


def changes(there: Mapping[str, Fingerprint], here: Mapping[str, Fingerprint]) -> str:
    """Describe how the fingerprints in `here` differ from those of the same name in `there`; empty if equal."""
    found = {name: difference(there[name], here[name]) for name in here if name in there}
    return "; ".join(f"{name}: {how}" for name, how in found.items() if how)


def write_fingerprints(path: os.PathLike | str, fingerprints: Mapping[str, Fingerprint]) -> None:
    """Write fingerprints to a file."""
    content = {name: fingerprint._asdict() for name, fingerprint in fingerprints.items()}
    write_atomically(path, json.dumps(content) + "\n")


def read_fingerprints(path: os.PathLike | str) -> dict[str, Fingerprint]:
    """Read fingerprints. Raises UserError for a damaged file."""
    try:
        return read_json(path, dict[str, Fingerprint])
    except UserError as error:
        raise UserError(f"{error}. Delete it if nothing has changed since the run began") from error
