"""Tar shards in the layout of WebDataset: members of the same name, before its first dot, are one example.

Shards are indexed once. Images are then read at their offsets in any order, so that a run resumes exactly.
"""

import dataclasses
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.progress

from train.config import Data
from train.data.columns import Chosen, choose_columns
from train.data.examples import Examples, open_examples
from train.data.sources import Parts
from train.data.splits import split_of
from train.data.transforms import Unreadable
from train.errors import UserError, one_line, shortened
from vit_jax.images import SUFFIXES

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}  # by the first two bytes
LABELS = ("cls", "txt", "json")  # members with labels
SAMPLE = 100  # examples by which columns are inferred
MOST_SHARDS = 100_000
MOST_LABEL = 2**20  # bytes of a member with labels


class Member(NamedTuple):
    """A file within a shard."""

    shard: Path
    offset: int
    size: int


Example = tuple[str, dict[str, Any]]  # its name; members by suffix, and labels by suffix or key


@dataclasses.dataclass(frozen=True)
class MemberFiles(Sequence):
    """Files within shards, read on access."""

    members: Sequence[Member]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> io.BytesIO:
        try:
            return io.BytesIO(_content(self.members[index]))
        except OSError as error:
            raise Unreadable(f"cannot read {self.members[index].shard}: {one_line(error)}") from error


def open_shards(pattern: str, config: Data, *, labels: bool = True) -> Parts:
    """Open tar shards.

    Args:
        pattern: A folder, a file, or a pattern such as shards/train-{000..009}.tar or shards/{train,val}-*.tar. Their
            names, or those of their folders, contain the split: train, val, validation or test. If none does, all are
            for training.
        config: Its columns, which are suffixes of members or keys of their JSON, target and splits.
        labels: Whether labels are needed.

    Raises:
        UserError: If a shard is missing, compressed or damaged, or examples lack an image or a label.
    """
    shards = find_shards(pattern, config)
    examples: dict[str, list[Example]] = {}
    for shard in rich.progress.track(shards, "Reading the index of each shard", disable=len(shards) < 2):
        examples.setdefault(split_of(shard), []).extend(_index(shard))
    if empty := [split for split, found in examples.items() if not found]:
        raise UserError(f"{config.name} has no examples in the split {empty[0]}")
    sample = [content for _, content in next(iter(examples.values()))[:SAMPLE]]
    columns = {name: [content.get(name) for content in sample] for content in sample for name in content}
    images = [name for name, values in columns.items() if any(isinstance(value, Member) for value in values)]
    if not images:
        raise UserError(f"{config.name}: the first examples have no image; they have {', '.join(columns)[:200]}")
    chosen = choose_columns(config, columns, images, labels=labels)
    splits = {split: _examples(found, chosen) for split, found in examples.items()}
    return open_examples(config, splits, labels=labels, notes=chosen.notes)


def find_shards(pattern: str, config: Data) -> list[Path]:
    """The shards of a folder or a pattern, sorted in each part of it. Raises UserError if there is none."""
    root = Path(pattern).expanduser()
    if root.is_dir():
        found = [*sorted(root.glob("*.tar")), *sorted(root.glob("*/*.tar"))]
    else:
        found = [shard for part in expand_braces(str(root)) for shard in _matching(Path(part))]
    if not found:
        raise UserError(f"{config.name}: there is no file {root}{'/*.tar' if root.is_dir() else ''}")
    return list(dict.fromkeys(found))


def _matching(path: Path) -> list[Path]:
    if not re.search(r"[*?\[]", path.name):
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        return [path]
    return sorted(path.parent.glob(path.name))


def expand_braces(pattern: str) -> list[str]:
    """Expand {000..009} and {a,b}, also nested, as a shell does. Raises UserError for more than MOST_SHARDS names."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    start, end = found.span()
    numbers = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", found[1])
    if numbers:
        first, last = map(int, numbers.groups())
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        if last - first >= MOST_SHARDS:
            raise UserError(f"{shortened(pattern)} names more than {MOST_SHARDS:,} files")
        parts = [f"{number:0{width}}" for number in range(first, last + 1)]
    else:
        parts = found[1].split(",")
    expanded: dict[str, None] = {}  # a name once: {a,b{1,2}} expands its inner part first
    for part in parts:
        expanded |= dict.fromkeys(expand_braces(pattern[:start] + part + pattern[end:]))
        if len(expanded) > MOST_SHARDS:
            raise UserError(f"{shortened(pattern)} names more than {MOST_SHARDS:,} files")
    return list(expanded)


def _index(shard: Path) -> list[Example]:
    """The examples of a shard. Raises UserError."""
    examples: dict[str, dict] = {}
    with open(shard, "rb") as file:
        for name, member in _members(shard, file):
            folder, _, base = name.rpartition("/")
            stem, _, suffix = base.partition(".")
            suffix = suffix.lower()
            if not stem or base.startswith("."):
                continue
            example = examples.setdefault(f"{shard.name}/{folder}{'/' if folder else ''}{stem}", {})
            if suffix in example:
                raise UserError(f"{shard} has {shortened(name)} twice")
            if f".{suffix.rpartition('.')[2]}" in SUFFIXES:
                example[suffix] = member
            elif suffix in LABELS:
                example |= _labels(member, suffix, name)
    return [(name, content) for name, content in examples.items() if content]


def _members(shard: Path, file) -> Iterator[tuple[str, Member]]:
    """The regular files in a tar, in order. Raises UserError unless it is complete."""
    if kind := COMPRESSED.get(file.read(2)):
        raise UserError(f"{shard} is compressed with {kind}: expected an uncompressed .tar, whose members have offsets")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (entry := archive.next()) is not None:
                archive.members = []  # tarfile would keep them all
                if entry.isreg() and not entry.issparse():
                    yield entry.name, Member(shard, entry.offset_data, entry.size)
            end = archive.offset
        file.seek(end)
        if file.read(2**20).strip(b"\0"):
            raise UserError(f"{shard} is damaged at byte {end:,}, or is several tars in one file")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{shard} cannot be read: {one_line(error)}") from error


def _labels(member: Member, suffix: str, name: str) -> dict:
    """Labels in a member: the text of .cls and .txt, the values of a JSON object in .json."""
    if member.size > MOST_LABEL:
        raise UserError(f"{shortened(name)} in {member.shard} has {member.size:,} bytes: expected labels")
    try:
        text = _content(member).decode()
        content = json.loads(text) if suffix == "json" else text.strip()
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{shortened(name)} in {member.shard} cannot be read: {one_line(error)}") from error
    if suffix != "json":
        return {suffix: content}
    return content if isinstance(content, dict) else {suffix: content}


def _content(member: Member) -> bytes:
    with open(member.shard, "rb") as file:
        file.seek(member.offset)
        content = file.read(member.size)
    if len(content) < member.size:
        raise OSError("the file has become shorter")
    return content


def _examples(found: Sequence[Example], chosen: Chosen) -> Examples:
    for column in (chosen.image, *chosen.labels):
        if lacking := [name for name, content in found if column not in content]:
            raise UserError(f"{len(lacking):,} of {len(found):,} examples have no {column}, such as {lacking[0]}")
    if not all(isinstance(content[chosen.image], Member) for _, content in found):
        raise UserError(f"--data.image-column is {chosen.image}: expected a suffix of images")
    members = [content[chosen.image] for _, content in found]
    labels = {column: [content[column] for _, content in found] for column in chosen.labels}
    return Examples(MemberFiles(members), [name for name, _ in found], labels)
