"""Process-wide set-up of a command. Programs that import this package do not get it."""

import inspect
import io
import logging
import os
import signal
import sys

import absl.logging

from train.allocator import keep_freed_memory


def set_up_process() -> None:
    """Prevent tracebacks on Ctrl-C and on encoding errors, and keep memory. Call it before slow imports."""
    keep_freed_memory()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # shells ignore it in background jobs
        signal.signal(signal.SIGINT, end_at_once)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may not be valid text
    silence_third_party_logging()


def end_at_once(*_) -> None:
    """Handle Ctrl-C when there is no state to save; an exception could print a traceback from any library."""
    os.write(2, b"interrupted\n")  # the signal may interrupt `print`, which cannot be called again
    os._exit(128 + signal.SIGINT)


def silence_third_party_logging() -> None:
    """Keep libraries from printing tracebacks of errors that the command reports in one line."""
    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax, Grain
    # After a failed read or write, Orbax does not await the others: their coroutines cause warnings.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    show = sys.unraisablehook
    left = lambda error: inspect.iscoroutine(error.object) or str(error.exc_value) == "Event loop is closed"
    sys.unraisablehook = lambda error: None if left(error) else show(error)
