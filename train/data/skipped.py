"""Report and count unreadable images, and stop if there are too many."""

import threading
from collections.abc import Callable, Iterable

from train.data.sources import Source
from train.errors import UserError

LIMIT = 0.01  # largest fraction of a split's images; a single one is always tolerated
NAMED = 3  # number of images that are named in messages


class Skipped:
    """The unreadable images of a split so far.

    Args:
        source: The images of the split.
        what: "training" or "evaluation".
        warn: Shows a line to the user.
    """

    def __init__(self, source: Source, what: str, warn: Callable[[str], None]):
        self._source, self._what, self._warn = source, what, warn
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def add(self, indices: Iterable[int]) -> None:
        """Add unreadable images; repeated ones count once. Raises UserError if there are more than LIMIT."""
        with self._lock:
            for index in sorted(set(indices) - self._seen):
                self._seen.add(index)
                count = len(self._seen)
                if count <= NAMED or count % 100 == 0:
                    self._warn(f"warning: {self}; the latest is {self._source.name_of(index)}")
                if count > max(1, LIMIT * len(self._source)):
                    names = ", ".join(self._source.name_of(i) for i in sorted(self._seen)[:NAMED])
                    raise UserError(f"{self}, more than {LIMIT:.0%}: {names}, ...")

    def __str__(self) -> str:
        return f"{len(self._seen):,} of {len(self._source):,} {self._what} images cannot be read"
