"""Convert weights between torch and Orbax: `python -m train.convert SOURCE --model NAME --out PATH`.

SOURCE is a torch file (.pth, .pt, .safetensors), published weights of torchvision (IMAGENET1K_V1), a folder that this
command wrote, or a workdir of the trainer. PATH ends in .safetensors for torch's names and layouts; any other becomes a
folder of Flax variables, written by Orbax.
"""

import dataclasses
import sys
from typing import Annotated

import tyro

from train.commandline.options import read_options, split
from train.commandline.ranges import Range
from train.commandline.terminal import run_command, tell
from train.errors import UserError

MOST_NUMBERS = 2**28  # in an input; it is allocated although only its shape matters


@dataclasses.dataclass(frozen=True)
class Options:
    """Which weights, of which model, and where to."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Torch file, name of published weights, folder of Flax variables, or workdir of the trainer."""
    out: str
    """File that ends in .safetensors, or folder; it must not exist yet."""
    model: str | None = None
    """Name of a model (NAME or NAME/PRESET) or of a torchvision network; a workdir knows its own."""
    model_args: tuple[str, ...] = ()
    """Arguments over the preset's, as KEY=VALUE."""
    input_shape: tuple[Annotated[int, Range(1, MOST_NUMBERS)], ...] | None = None
    """Shape of one input without the batch; default: an image of the model's size and channels."""
    prefix: str | None = None
    """Beginning of the names in a torch file that belong to the model, as in `module.` or, for a dict within a dict,
    `state_dict.model.`; default: the names are the model's own."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 2 for a user's mistake."""
    try:
        options = read_options(Options, split(sys.argv[1:] if argv is None else argv), "convert", __doc__)
        from train.conversion import convert  # here, as JAX takes seconds to import

        convert(options)
    except UserError as error:
        return tell(2, f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
