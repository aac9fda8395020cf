"""Process-wide set-up of a command, which programs that import this package do not get."""

import inspect
import io
import logging
import os
import signal
import sys

import absl.logging


def set_up_process() -> None:
    """Prevent tracebacks on Ctrl-C and encoding errors. Call it before slow imports."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background jobs
        signal.signal(signal.SIGINT, end_at_once)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    silence_third_party_logging()


def end_at_once(*_) -> None:
    """Handler of Ctrl-C without state to save; raising could print a traceback from any library."""
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
