"""Run a command in a terminal: escape control characters, and exit quietly on a closed pipe."""

import os
import select
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from train.commandline.startup import set_up_process
from vit_jax.printable import printable

BROKEN_PIPE = 128 + signal.SIGPIPE  # as shells report a process killed by the signal


def run_command(command: Callable[[], int]) -> int:
    """Run a command that is the whole of this process, and exit silently if the output pipe is closed (`... | head`).

    Args:
        command: The command; it returns the exit status.

    Returns:
        The exit status; BROKEN_PIPE if the output pipe is closed.
    """
    set_up_process()
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()  # otherwise Python flushes at exit, and reports the error itself
    except BrokenPipeError:
        if not any(map(_has_no_reader, (sys.stdout, sys.stderr))):
            raise  # the error is from another pipe
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # Rich turns BrokenPipeError into SystemExit
            raise
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())  # Python flushes them at exit
    return BROKEN_PIPE


def tell(status: int, message: str) -> int:
    """Print a message of one or more lines to stderr, and return `status`."""
    print("\n".join(printable(line, None) for line in message.split("\n")), file=sys.stderr)
    return status


def _has_no_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
