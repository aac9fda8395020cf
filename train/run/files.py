"""Files of a run, on a local disk or in an object store that etils.epath supports (gs://, s3://, ...).

A workdir may come from an untrusted source. Links in it are not followed, because they could point outside, and only
regular files are opened, because reading a pipe or a device may never end.
"""

import errno
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path, PurePath

import jax
from etils import epath

from train.config import CHECKPOINTS
from train.errors import UserError

SMALL = 2**24  # bytes; much larger than any config.json, checksum file or metrics record


def is_remote(path: os.PathLike | str) -> bool:
    """Whether `path` is in an object store, where writes are atomic, and files cannot be appended to or locked."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(path)) is not None


def reachable(path: os.PathLike | str) -> epath.Path:
    """`path` as an epath; it need not exist. Raises UserError if its object store cannot be reached."""
    try:
        place = epath.Path(path)
        if is_remote(place):
            place.exists()
    except KeyError:
        raise UserError(f"{path}: expected a local path, or one that begins with gs:// or s3://") from None
    except Exception as error:  # each store raises its own types of errors: no library, no credentials, no network
        raise UserError(f"{path} cannot be reached: {' '.join(str(error).split())[:300]}") from error
    return place


def is_workdir(path: os.PathLike | str) -> bool:
    """Whether `path` contains a run with checkpoints. Raises UserError if its object store cannot be reached."""
    return (reachable(path) / CHECKPOINTS).is_dir()


def check_writable(folder: os.PathLike | str) -> None:
    """Raises UserError if permissions forbid creating or writing a local folder. Nothing is written."""
    if is_remote(folder):
        return
    absolute = Path(os.path.abspath(folder))
    place = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise UserError(f"--workdir {folder} cannot be written: {place} is not a folder that can be written to")


def orbax_path(folder: os.PathLike | str) -> epath.Path:
    """An absolute path of the existing `folder` that Orbax and tensorstore interpret correctly.

    They treat a backslash as a slash, brackets and wildcards as a pattern, and `gs:/` as an object store, and accept
    only UTF-8. For a folder with such a name, this is a path through a file descriptor, which stays open until the
    process ends.
    """
    check_orbax_name(folder)
    path = epath.Path(folder)
    if is_remote(path):
        return path
    path = path.resolve()
    if _is_plain(path):
        return path
    return epath.Path(f"{DESCRIPTORS}/{os.open(path, os.O_RDONLY | os.O_DIRECTORY)}")


def check_orbax_name(folder: os.PathLike | str) -> None:
    """Raises UserError for a folder that `orbax_path` cannot handle on this system or with several processes."""
    if is_remote(folder) or _is_plain(epath.Path(folder).resolve()):
        return
    if jax.process_count() > 1 or not os.path.isdir(DESCRIPTORS):
        raise UserError(
            f"checkpoints cannot be written to {os.path.abspath(folder)!a}: expected printable characters "
            r"other than * ? [ \, and no name that ends in a colon"
        )


DESCRIPTORS = "/proc/self/fd"  # Linux: links to all open files and folders, named by descriptor


def _is_plain(path: os.PathLike | str) -> bool:
    text = os.fspath(path)
    return not re.search(r"[*?\[\\]|:(/|$)", text) and text.isprintable()


def open_regular(path: os.PathLike | str, flags: int = os.O_RDONLY) -> int:
    """Open a local regular file. Raises OSError for links, pipes and devices, without blocking."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(path):
            raise OSError(errno.ELOOP, "it is a link; expected a regular file", os.fspath(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return descriptor


def read_small(path: os.PathLike | str, limit: int = SMALL) -> bytes:
    """Read a file. Raises OSError if it is larger than `limit` bytes or not a regular file."""
    if is_remote(path):
        size = epath.Path(path).stat().length
        content = epath.Path(path).read_bytes() if size <= limit else b""
    else:
        with open(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(limit + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes; expected at most {limit:,}", os.fspath(path))
    return content


def draft(path: PurePath) -> PurePath:
    """A random temporary name in the folder of `path`, for a file that is then moved to `path`."""
    return path.parent / f"{path.name}.{secrets.token_hex(8)}.tmp"


def write_atomically(path: os.PathLike | str, content: str | bytes) -> None:
    """Write a file so that after a kill at any moment either the old or the new file is complete."""
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(content)  # writes to an object store are atomic
        return
    part = draft(path)
    try:
        with open(open_regular(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(content)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)  # leave no partial file on a full disk
        raise


class StagedDirectory:
    """A folder for files that are appended to. If it is remote, `path` is a local folder, which `publish` uploads."""

    def __init__(self, folder: os.PathLike | str):
        self._folder = epath.Path(folder)
        self._temporary = tempfile.TemporaryDirectory() if is_remote(folder) else None
        self.path = Path(self._temporary.name if self._temporary else folder)

    def publish(self) -> None:
        """Upload the files if the folder is remote."""
        if self._temporary:
            for file in self.path.iterdir():
                epath.Path(file).copy(self._folder / file.name, overwrite=True)

    def close(self) -> None:
        self.publish()
        if self._temporary:
            self._temporary.cleanup()
