"""One run at a time in a workdir."""

import fcntl
import os
import socket
import time

from etils import epath

from train.config import Stopped, UserError
from train.files import is_remote

FILE = "lock"


class Lock:
    """The right to write into a workdir. Raises UserError where another process has it.

    The system holds it for as long as this process lives, so that nothing is left behind by a kill. Where there is no
    such lock (object stores, some network file systems), the last to come has the right, and `check` stops the others.
    """

    def __init__(self, workdir: os.PathLike | str):
        self._path = epath.Path(workdir) / FILE
        self._owner = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        self._file = None
        if not is_remote(workdir):
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._file)
                self._file = None
                if isinstance(error, BlockingIOError):
                    holder = self._path.read_text() or "another process"
                    raise UserError(f"--workdir {workdir} is in use by {holder}: name another, or wait") from error
        self._path.write_text(self._owner)

    def check(self) -> None:
        """Raises Stopped where a later process has taken the workdir over. Call it before what cannot be undone."""
        if self._file is None and (owner := self._path.read_text()) != self._owner:
            raise Stopped(
                f"{self._path.parent} was taken over by {owner or 'another process'}, which goes on with the run"
            )

    def close(self) -> None:
        if self._file is not None:
            self._path.write_text("")
            os.close(self._file)
