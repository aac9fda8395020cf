"""Export a trained run for use without the trainer: `python -m train.export --workdir W --out FOLDER`.

Writes its best checkpoint in one or more formats, each checked against the run before the folder appears, with the
preprocessing of images and examples of use beside them.
"""

import dataclasses
import sys
from typing import Literal

from train.commandline.options import read_options, split
from train.commandline.terminal import run_command, tell
from train.errors import UserError

Format = Literal["safetensors", "stablehlo", "onnx"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Run to export, and the output."""

    workdir: str
    """Folder of the run."""
    out: str
    """Folder to write; it must not exist yet."""
    formats: tuple[Format, ...] = ("safetensors", "stablehlo")
    """Formats to write: `safetensors` (weights and config.json, for vit_jax, timm or torch), `stablehlo` (a program
    that JAX runs without this package), `onnx` (a program for ONNX Runtime and other engines; needs jax2onnx)."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 2 for invalid user input."""
    try:
        options = read_options(Options, split(sys.argv[1:] if argv is None else argv), "export", __doc__)
        from train.exporting.folder import export  # not at the top: JAX takes seconds to import

        export(options)
    except UserError as error:
        return tell(2, f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
