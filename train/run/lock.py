"""One run at a time in a workdir."""

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
    """Raises UserError if another process has the lock of `workdir`. Takes and writes nothing."""
    path = epath.Path(workdir) / FILE
    if is_remote(path):
        return
    with contextlib.suppress(OSError):  # no lock file yet, or what `Lock` refuses
        file = open_regular(path)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(path) from error
        finally:
            os.close(file)


class Lock:
    """The right to write into a workdir. Raises UserError where another process has it.

    The system holds it for as long as this process lives, so that nothing is left behind by a kill. Where there is no
    such lock (object stores, some network file systems), the last to come has the right, and `check` stops the others.
    """

    def __init__(self, workdir: os.PathLike | str):
        self._path = epath.Path(workdir) / FILE
        now = datetime.datetime.now().isoformat(" ")  # to the microsecond: `check` compares it
        self._owner = f"process {os.getpid()} on {socket.gethostname()} since {now}"
        self._file = None if is_remote(workdir) else self._locked()
        self._write(self._owner)

    def check(self) -> None:
        """Raises Stopped if another process took over the workdir. Call it before irreversible writes.

        A deleted lock file is created again.
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
        """The descriptor of the lock file, locked; None where the file system has no locks."""
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
            os.close(file)  # deleted before it was locked: what is locked must be what others find

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
    return UserError(f"--workdir {path.parent} is in use by {_holder(path)}: name another, or wait")


def _holder(path: epath.Path) -> str:
    """The process named in the lock file, with control characters escaped."""
    return repr(read_small(path).decode(errors="replace")[:200])[1:-1] or "another process"
