"""What a process does first when it is a command, rather than a program that imports this package."""

import inspect
import io
import logging
import os
import signal
import sys

import absl.logging


def set_up_process() -> None:
    """Keep tracebacks and encoding errors away from the user of a command. Call it before what takes long to import."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background jobs
        signal.signal(signal.SIGINT, end_at_once)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    silence_third_party_logging()


def end_at_once(*_) -> None:
    """Ctrl-C where there is nothing to save. An exception could come to light anywhere, or be followed by another."""
    os.write(2, b"interrupted\n")  # `print` may be at work already
    os._exit(128 + signal.SIGINT)


def silence_third_party_logging() -> None:
    """Keep libraries from printing tracebacks of errors that end a run in one line of ours."""
    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax, Grain
    # Orbax does not wait for all reads and writes once one has failed, and leaves their coroutines behind.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    show = sys.unraisablehook
    left = lambda error: inspect.iscoroutine(error.object) or str(error.exc_value) == "Event loop is closed"
    sys.unraisablehook = lambda error: None if left(error) else show(error)
