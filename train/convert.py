"""Convert weights between torch and Orbax: `python -m train.convert SOURCE --model NAME --out PATH`.

SOURCE is a torch file (.pth, .pt, .safetensors), the name of weights published by torchvision (IMAGENET1K_V1), a
folder that this command wrote, or the workdir of a run. If PATH ends in .safetensors, the weights are written with
torch's names and layouts; otherwise Orbax writes a folder of Flax variables.
"""

import dataclasses
import sys
from typing import Annotated

import tyro

from train.commandline.options import read_options, split
from train.commandline.ranges import Range
from train.commandline.terminal import run_command, tell
from train.errors import UserError

MOST_NUMBERS = 2**28  # in an input, which is allocated although only its shape is used


@dataclasses.dataclass(frozen=True)
class Options:
    """Weights to convert, their model, and the output."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Torch file, name of published weights, folder of Flax variables, or workdir of a run."""
    out: str
    """Output: a file that ends in .safetensors, or a folder; it must not exist yet."""
    model: str | None = None
    """Name of a model (NAME or NAME/PRESET) or of a torchvision network; not needed for a workdir."""
    model_args: tuple[str, ...] = ()
    """Arguments of the model that override its preset, as KEY=VALUE."""
    input_shape: tuple[Annotated[int, Range(1, MOST_NUMBERS)], ...] | None = None
    """Shape of one input without the batch axis; default: an image of the model's size and channels."""
    prefix: str | None = None
    """Prefix of the model's keys in a torch file, such as `module.`, or `state_dict.model.` for nested dicts; default:
    no prefix."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 2 for invalid user input."""
    try:
        options = read_options(Options, split(sys.argv[1:] if argv is None else argv), "convert", __doc__)
        from train.conversion import convert  # not at the top: JAX takes seconds to import

        convert(options)
    except UserError as error:
        return tell(2, f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
