"""Estimate memory and time of a training step without the devices: `python -m train.plan --model=vit/b16`.

The training step of `train.main` is compiled ahead of time for TPUs (needs `pip install '.[train,tpu]'`), GPUs (needs
`pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt`, in the version of JAX) or virtual CPU devices. All options of
`python -m train.main` are accepted in addition to the options below.
"""

import dataclasses
import sys
from typing import Annotated

from train.commandline.options import HELP, Group, check_known, last, options, read_options, split
from train.commandline.ranges import Range
from train.commandline.terminal import run_command, tell
from train.config import Config
from train.errors import UserError
from train.main import SHORT, parse_groups


@dataclasses.dataclass(frozen=True)
class Options:
    """Target devices and assumed data."""

    topology: str = "v5e:2x4"
    """Target devices: TPU chips as GENERATION:SHAPE (v4, v5e, v5p, v6e), GPUs as TYPE:N (a100, h100, h200), or cpu:N
    for N virtual CPU devices."""
    classes: Annotated[int, Range(1, 1_000_000)] = 1000
    """Number of classes of the assumed data."""
    sweep: bool = False
    """Find the largest batch that fits into memory, by doubling and then bisecting the batch size."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 2 for invalid user input."""
    groups = split(sys.argv[1:] if argv is None else argv, SHORT)
    own_options = options(Options)
    own = [group for group in groups if group.option in (*own_options, *HELP)]
    others = [group for group in groups if group not in own]
    try:
        check_known(groups, options(Config) | own_options)
        asked = read_options(Options, own, "plan", __doc__)
        if last(others, "--data.name") is None:
            others.insert(0, Group("--data.name", ("tfds:imagenet2012",)))  # the default data selects a recipe
        config = parse_groups(others)
        if last(others, "--dtype") is None and not asked.topology.startswith("cpu:"):
            config = dataclasses.replace(config, dtype="bfloat16")
        from train.planning import show_plan  # not at the top: JAX takes seconds to import

        show_plan(config, asked.topology, asked.classes, largest_batch=asked.sweep)
    except UserError as error:
        return tell(2, f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
