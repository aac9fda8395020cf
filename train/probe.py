"""Probe the features of a trained encoder by classification accuracy: `python -m train.probe --workdir W`.

The encoder is frozen. A k-nearest-neighbour classifier (cosine similarity) and a linear classifier, both from
scikit-learn, are fitted to its features of the training images and evaluated on the evaluation images.
"""

import dataclasses
import sys
from typing import Annotated

from train.allocator import compute_in_main_thread
from train.commandline.options import read_options, split
from train.commandline.ranges import Range
from train.commandline.terminal import run_command, tell
from train.compilation import keep_programs
from train.config import MOST_IMAGES
from train.errors import UserError
from vit_jax.printable import printable


@dataclasses.dataclass(frozen=True)
class Options:
    """Encoder to probe, and the data."""

    workdir: str
    """Folder of the run whose encoder is probed; of a classifier, everything before the head."""
    data: str | None = None
    """Dataset with labels, as for training (`vit-jax --list-data`); default: the dataset of the run."""
    untrained: bool = False
    """Probe the same encoder with random weights instead, for comparison."""
    neighbours: Annotated[int, Range(1, 1_000_000)] = 20
    """Number of nearest training images that vote for the class of an image."""
    batch_size: Annotated[int, Range(1, MOST_IMAGES)] = 256
    """Images per batch; affects only speed and memory."""
    seed: Annotated[int, Range(0, 2**32, open_high=True)] = 0
    """Random seed of the untrained encoder."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 2 for invalid user input."""
    try:
        groups = split(sys.argv[1:] if argv is None else argv)
        options = read_options(Options, groups, "probe", __doc__)
        keep_programs()
        compute_in_main_thread()
        from train.probing import probe  # not at the top: JAX takes seconds to import

        found = probe(options)
    except UserError as error:
        return tell(2, f"error: {error}")
    what = f"{'untrained ' if options.untrained else ''}encoder of {printable(options.workdir, None)}"
    print(f"{what}: {options.neighbours} nearest neighbours {found['knn']:.2%}, linear {found['linear']:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
