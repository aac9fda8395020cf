"""Download a dataset and prepare it for `--data=tfds:NAME`: `python -m train.prepare oxford_flowers102`.

TFDS writes it as ArrayRecord. TensorFlow is needed only for datasets whose own code uses it.
"""

import dataclasses
import sys
from typing import Annotated

import tyro

from train.commandline.options import read_options, split
from train.commandline.terminal import run_command, tell
from train.errors import UserError
from vit_jax.printable import printable


@dataclasses.dataclass(frozen=True)
class Options:
    """Dataset to prepare, and its folder."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name in TFDS: NAME, NAME/CONFIGURATION or NAME:VERSION."""
    dir: str | None = None
    """Folder of all prepared datasets, as in `--data.dir`; default: the one that TFDS itself uses."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 2 for invalid user input."""
    try:
        options = read_options(Options, split(sys.argv[1:] if argv is None else argv), "prepare", __doc__)
        from train.data.prepared import prepare  # not at the top: TFDS takes seconds to import

        folder = prepare(options.name, options.dir)
    except UserError as error:
        return tell(2, f"error: {error}")
    print(f"prepared {printable(options.name, None)} in {printable(str(folder), None)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
