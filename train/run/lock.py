"""A lock on a workdir, so that only one run writes to it."""

import contextlib
import datetime
import fcntl
import os
import socket

from etils import epath

from train.errors import Stopped, UserError
from train.run.files import is_remote, open_regular, read_small

FILE = "lock"


def check_free(workdir: os.PathLike | str) -> None:
    """Raises UserError if another process holds the lock of `workdir`. Nothing is locked or written."""
    path = epath.Path(workdir) / FILE
    if is_remote(path):
        return
    with contextlib.suppress(OSError):  # there is no lock file yet, or `Lock` reports the problem
        file = open_regular(path)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(path) from error
        finally:
            os.close(file)


class Lock:
    """The exclusive right to write to a workdir.

    The operating system releases the lock when the process ends, so that a kill leaves no lock behind. Where files
    cannot be locked (object stores, some network file systems), the process that starts last owns the workdir, and
    `check` stops the others.

    Args:
        workdir: The workdir, which must exist.

    Raises:
        UserError: If another process holds the lock.
    """

    def __init__(self, workdir: os.PathLike | str):
        self._path = epath.Path(workdir) / FILE
        now = datetime.datetime.now().isoformat(" ")  # to the microsecond: `check` compares it
        self._owner = f"process {os.getpid()} on {socket.gethostname()} since {now}"
        self._file = None if is_remote(workdir) else self._locked()
        self._write(self._owner)

    def check(self) -> None:
        """Raises Stopped if another process has taken over the workdir. Call it before irreversible writes.

        If the lock file has been deleted, it is created again.
        """
        if self._file is not None and not os.path.lexists(self._path):
            self.close()
            self._file = self._locked()
            self._write(self._owner)
        mine = self._is_in_place(self._file) if self._file is not None else _holder(self._path) == self._owner
        if not mine:
            raise Stopped(f"{self._path.parent} was taken over by {_holder(self._path)}, which continues the run")

    def close(self) -> None:
        if self._file is not None:
            self._write("")
            os.close(self._file)
            self._file = None

    def _locked(self) -> int | None:
        """Lock the lock file, and return its descriptor; None if the file system does not support locks."""
        while True:
            file = open_regular(self._path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(file)
                raise _in_use(self._path) from error
            except OSError:
                os.close(file)
                return None
            if self._is_in_place(file):
                return file
            os.close(file)  # the file was deleted before it was locked; others would lock a new one

    def _is_in_place(self, file: int) -> bool:
        return os.path.lexists(self._path) and os.path.samestat(os.fstat(file), os.lstat(self._path))

    def _write(self, text: str) -> None:
        if is_remote(self._path):
            self._path.write_text(text)
            return
        file = self._file if self._file is not None else open_regular(self._path, os.O_RDWR | os.O_CREAT)
        os.truncate(file, 0)
        os.pwrite(file, text.encode(), 0)
        if file != self._file:
            os.close(file)


def _in_use(path: epath.Path) -> UserError:
    return UserError(f"--workdir {path.parent} is in use by {_holder(path)}: pass another, or wait")


def _holder(path: epath.Path) -> str:
    """The process named in the lock file, with control characters escaped."""
    return repr(read_small(path).decode(errors="replace")[:200])[1:-1] or "another process"
