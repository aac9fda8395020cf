"""Compare runs: `python -m train.compare runs/a runs/b` prints a table and writes a page.

Runs that differ only in their seed are also shown together, with the mean and the standard deviation of their metrics.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from train.commandline.options import read_options, split
from train.commandline.terminal import run_command, tell
from train.errors import UserError

REQUIRED = tyro.conf.arg(metavar="RUNS", help_behavior_hint="(required)")


@dataclasses.dataclass(frozen=True)
class Options:
    """The runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, REQUIRED]
    """Folders of two or more runs."""
    out: Path = Path("compare.html")
    """Page to write."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 0, or 2 for invalid input."""
    try:
        options = read_options(Options, split(sys.argv[1:] if argv is None else argv), "compare", __doc__)
        from train.evaluation.comparison import show_comparison  # not at the top: JAX takes seconds to import

        show_comparison(list(map(str, options.runs)), options.out)
        return 0
    except UserError as error:
        return tell(2, f"error: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main))
