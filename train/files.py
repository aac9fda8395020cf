"""Files of a run, on a local disk or wherever etils.epath reaches (gs://, s3://, ...)."""

import os
import tempfile
from pathlib import Path

from etils import epath


def is_remote(path: os.PathLike | str) -> bool:
    """Whether `path` lies in an object store, where files are whole or absent and nothing can be appended or locked."""
    return "://" in os.fspath(path)


def write_atomically(path: os.PathLike | str, text: str) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one whole."""
    path = epath.Path(path)
    draft = path.parent / f"{path.name}.{os.getpid()}.tmp"
    try:
        draft.write_text(text)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)  # a full disk is not to be filled further
        raise


class Desk:
    """Where files are written that grow line by line: the folder itself, or for a remote one a temporary folder whose
    files `publish` copies there."""

    def __init__(self, folder: os.PathLike | str):
        self._folder = epath.Path(folder)
        self._temporary = tempfile.TemporaryDirectory() if is_remote(folder) else None
        self.path = Path(self._temporary.name if self._temporary else folder)

    def publish(self) -> None:
        """Bring the folder up to date."""
        if self._temporary:
            for file in self.path.iterdir():
                epath.Path(file).copy(self._folder / file.name, overwrite=True)

    def close(self) -> None:
        self.publish()
        if self._temporary:
            self._temporary.cleanup()
