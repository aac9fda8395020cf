"""Write the report of a run: `python -m train.report --workdir runs/vit-digits`.

A run writes it at its end. This command writes it again, for a run that was stopped or that an older version trained.
"""

import dataclasses
import sys

from train.commandline.options import read_options, split
from train.commandline.terminal import run_command, tell
from train.compilation import keep_programs
from train.errors import Stopped, UserError
from vit_jax.printable import printable


@dataclasses.dataclass(frozen=True)
class Options:
    """The run."""

    workdir: str
    """Folder of the run, into which report.html is written."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 0, 2 for invalid input, or 1 if memory runs out."""
    try:
        options = read_options(Options, split(sys.argv[1:] if argv is None else argv), "report", __doc__)
        keep_programs()
        from train.evaluation.report import write_report  # not at the top: JAX takes seconds to import

        try:
            print(f"see {printable(write_report(options.workdir), None)}")
        except OSError as error:
            raise UserError(f"--workdir {options.workdir} cannot be written: {error.strerror or error}") from error
        return 0
    except UserError as error:
        return tell(2, f"error: {error}")
    except Stopped as error:
        return tell(1, f"stopped: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main))
