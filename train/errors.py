"""Errors that end a command with a short message, and how to word the errors of other libraries."""

import errno
import os
import signal
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
    """The loss, or a parameter, is no longer a finite number."""


class Preempted(Exception):
    """The run has saved its state and ends because of the signal `number`.

    `status` is what shells and container runtimes report for a process that the signal ended, so that schedulers which
    restart killed jobs (Kubernetes' restartPolicy OnFailure, Slurm with RequeueExit=143) restart this one too.
    """

    def __init__(self, message: str, number: int | None = None):
        super().__init__(message)
        self.status = 128 + (number or signal.SIGTERM)
        self.word = "interrupted" if number == signal.SIGINT else "preempted"


def shortened(value: Any, most: int = 100) -> str:
    """Format `value` for a message, truncated; text is quoted only if it contains non-printable characters."""
    try:
        text = value if isinstance(value, str) and value.isprintable() and value.strip() else repr(value)
    except ValueError:  # Python prints no number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def one_line(error: BaseException) -> str:
    """The message of another library's `error`, truncated; a system error's reason is never cut off."""
    text = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    if len(text) <= LONGEST:
        return text
    reasons = [reason for number in errno.errorcode if (reason := os.strerror(number)) in text]
    last = max(reasons, key=text.rfind, default="")  # messages end with their cause
    return f"{last}{': ' if last else ''}{text[:LONGEST]} ..."
