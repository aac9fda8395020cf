"""Publish a trained run on the Hugging Face hub: `python -m train.push ORG/REPO --workdir W --license mit`.

Exports the run as `vit-jax export` does, with a model card made from the run, and uploads the folder.
"""

import dataclasses
import sys
from typing import Annotated

import tyro

from train.commandline.options import read_options, split
from train.commandline.terminal import run_command, tell
from train.errors import UserError
from train.export import Format


@dataclasses.dataclass(frozen=True)
class Options:
    """Run to publish, and the repository."""

    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPOSITORY")]
    """Repository on the hub, as ORG/REPO; it is created if it does not exist."""
    workdir: str
    """Folder of the run."""
    license: str | None = None
    """Licence of the weights, by the hub's name, such as mit or apache-2.0; default: none is stated."""
    formats: tuple[Format, ...] = ("safetensors", "stablehlo")
    """Formats to write; see `vit-jax export --help`."""
    private: bool = False
    """Create the repository so that only its owners see it."""
    out: str | None = None
    """Folder in which a copy of what is uploaded is kept; it must not exist yet."""
    dry_run: bool = False
    """Write the folder `--out`, and upload nothing."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 2 for invalid user input."""
    try:
        options = read_options(Options, split(sys.argv[1:] if argv is None else argv), "push", __doc__)
        if options.dry_run and options.out is None:
            raise UserError("--dry-run needs --out, the folder to write")
        from train.exporting.hub import push  # not at the top: JAX takes seconds to import

        push(options)
    except UserError as error:
        return tell(2, f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
