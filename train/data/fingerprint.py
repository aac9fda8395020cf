"""Fingerprints of what a run reads besides its configuration, so that it notices when that has changed meanwhile.

Names are relative to the data's own folder: the data may move.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from train.config import UserError
from train.files import write_atomically
from train.json_files import read_json

FILE = "fingerprints.json"
ENTRIES, CHARACTERS = 50_000, 300_000  # names up to which they are kept, so that a change can be told by name


class Fingerprint(NamedTuple):
    """What identifies the examples of a split, in short.

    Attributes:
        origin: Where they come from, with a version if there is one.
        count: Number of examples.
        digest: SHA-256 of what identifies them, in order.
        classes: For each class its number of examples and the digest of their names, if they are files.
        names: Their names in order, if they are files. Both are empty where they would be too many to keep.
    """

    origin: str
    count: int
    digest: str
    classes: dict[str, tuple[int, str]]
    names: tuple[str, ...]


def digest_of(parts: Iterable[bytes]) -> str:
    """SHA-256 of a sequence of byte strings, which depends on where each ends."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8))
        total.update(part)
    return total.hexdigest()


def fingerprint_of_arrays(origin: str, count: int, arrays: Iterable[np.ndarray | jax.Array]) -> Fingerprint:
    """Of `count` examples that lie in memory."""
    return Fingerprint(origin, count, digest_of(np.asarray(array).tobytes() for array in arrays), {}, ())


def fingerprint_of_files(origin: str, files: Mapping[str, Sequence[str]]) -> Fingerprint:
    """Of the files of each class, by name; those without a class are of the class ""."""
    classes = {name: (len(members), digest_of(map(os.fsencode, members))[:16]) for name, members in files.items()}
    names = tuple(member for members in files.values() for member in members)
    digest = digest_of(os.fsencode(name) for pair in files.items() for name in (pair[0], *pair[1]))
    is_kept = lambda strings: len(strings) <= ENTRIES and sum(map(len, strings)) <= CHARACTERS
    kept = classes if is_kept(classes) and "" not in classes else {}
    return Fingerprint(origin, len(names), digest, kept, names if is_kept(names) else ())


def difference(there: Fingerprint, here: Fingerprint) -> str:
    """How `here` differs from `there`, in words; empty if it does not."""
    if there.digest == here.digest:
        return ""
    told = []
    if there.origin != here.origin:
        told.append(f"{there.origin} then and {here.origin} now")
    if there.count != here.count:
        told.append(f"{there.count:,} examples then and {here.count:,} now")
    if there.names and here.names:
        then, now = set(there.names), set(here.names)
        told += [f"{len(names):,} added, such as {min(names)}" for names in (now - then,) if names]
        told += [f"{len(names):,} missing, such as {min(names)}" for names in (then - now,) if names]
    else:
        told += _changed_classes(there.classes, here.classes)
    return "; ".join(told) or "as many, but others or in another order"


def _changed_classes(there: Mapping[str, tuple[int, str]], here: Mapping[str, tuple[int, str]]) -> list[str]:
    """The first three classes whose examples are others, and how many classes more."""
    nothing = (0, "")
    changed = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    told = []
    for name in changed[:3]:
        more = here.get(name, nothing)[0] - there.get(name, nothing)[0]
        what = f"{abs(more):,} {'more' if more > 0 else 'fewer'}" if more else "as many, but with other names"
        told.append(f"class {name!r} has {what}")
    if changed[3:]:
        told.append(f"{len(changed) - 3:,} more classes differ")
    return told


def changes(there: Mapping[str, Fingerprint], here: Mapping[str, Fingerprint]) -> str:
    """How what is in `here` differs from what `there` has of the same name, in words; empty if it does not."""
    told = {name: difference(there[name], here[name]) for name in here if name in there}
    return "; ".join(f"{name}: {how}" for name, how in told.items() if how)


def write_fingerprints(path: os.PathLike | str, fingerprints: Mapping[str, Fingerprint]) -> None:
    """Keep fingerprints in a file."""
    content = {name: fingerprint._asdict() for name, fingerprint in fingerprints.items()}
    write_atomically(path, json.dumps(content) + "\n")


def read_fingerprints(path: os.PathLike | str) -> dict[str, Fingerprint]:
    """What `write_fingerprints` wrote. Raises UserError for a damaged file."""
    try:
        return read_json(path, dict[str, Fingerprint])
    except UserError as error:
        raise UserError(f"{error}. Delete it if nothing has changed since the run began") from error
