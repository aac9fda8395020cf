"""Errors that end a command with a short message, and the shortening of messages from other libraries."""

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from typing import Any

from vit_jax.printable import printable

LONGEST = 200  # characters of another library's message


class Explained(Exception):
    """An error printed without a traceback. Control characters in its message are escaped."""

    def __str__(self) -> str:
        return "\n".join(printable(line, 2000) for line in super().__str__().split("\n"))


class UserError(Explained):
    """Invalid user input; printed as one line (exit status 2)."""


class Stopped(Explained):
    """A failure that ends a run; printed as one line (exit status 1)."""


class Diverged(Stopped):
    """The loss or a parameter is no longer finite."""


class Preempted(Exception):
    """The run has saved its state and exits because of a signal.

    Args:
        message: Message for the user.
        number: The signal; SIGTERM if None.

    Attributes:
        status: Exit status that shells and container runtimes report for a process killed by the signal, so that
            schedulers which restart killed jobs (Kubernetes with restartPolicy OnFailure, Slurm with RequeueExit=143)
            restart this one too.
        word: "interrupted" for SIGINT, otherwise "preempted".
    """

    def __init__(self, message: str, number: int | None = None):
        super().__init__(message)
        self.status = 128 + (number or signal.SIGTERM)
        self.word = "interrupted" if number == signal.SIGINT else "preempted"


def shortened(value: Any, most: int = 100) -> str:
    """Format `value` for a message, truncated; text is quoted only if it contains non-printable characters."""
    try:
        text = value if isinstance(value, str) and value.isprintable() and value.strip() else repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def one_line(error: BaseException) -> str:
    """The message of another library's `error` on one line, truncated; the reason of a system error is kept whole."""
    text = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    if len(text) <= LONGEST:
        return text
    reasons = [reason for number in errno.errorcode if (reason := os.strerror(number)) in text]
    last = max(reasons, key=text.rfind, default="")  # the cause is at the end of a message
    return f"{last}{': ' if last else ''}{text[:LONGEST]} ..."


@contextlib.contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Convert any error to a UserError that begins with `what`: libraries raise many types for a damaged file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {one_line(error)}") from error
