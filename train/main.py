"""Train a model: `python -m train.main --model=t2t`. `--help` lists every option."""

import dataclasses
import os
import sys

from train.allocator import compute_in_main_thread
from train.commandline.options import Group, last, read_options, split
from train.commandline.terminal import run_command, tell
from train.compilation import keep_programs
from train.config import Config
from train.errors import Preempted, Stopped, UserError
from train.listing import answer
from train.paths import with_absolute_paths
from train.recipes import base_config
from train.validation import check_options


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status.

    Returns:
        0: the run has finished. 2: invalid user input. 1: the run failed (a loss that is not finite, a full disk, ...),
        or one of a sweep.
        143: preempted by SIGTERM; 130: interrupted by Ctrl-C. After these two the same command continues the run.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        if (text := answer(argv)) is not None:
            print(text)
            return 0
        config = parse(argv)
        if config.sweep:
            from train.sweep import sweep  # not at the top: it imports JAX and this module

            return sweep(split(argv, SHORT), config)
        check_options(config)
    except UserError as error:
        return tell(2, f"error: {error}")
    return run(config)


def run(config: Config) -> int:
    """Run the training that `config` describes, and return the exit status (see `main`)."""
    from train.cluster import preemption  # not at the top: JAX takes seconds to import
    from train.cluster.processes import join, together
    from train.loop import fit

    try:
        keep_programs(config.compilation_cache)
        compute_in_main_thread()
        join(config)
        with together(), preemption.listening() as asked:
            if config.tpu:
                require_tpu()
            fit(config, asked)
    except UserError as error:
        return tell(2, f"error: {error}")
    except Stopped as error:
        return tell(1, f"stopped: {error}")
    except Preempted as error:
        return tell(error.status, f"{error.word}: {error}")
    except KeyboardInterrupt:
        return tell(130, "interrupted: the same command continues from the last checkpoint")
    return 0


def parse(argv: list[str]) -> Config:
    """Parse `argv` into a config, starting from the recipe. Raises UserError for invalid options."""
    return parse_groups(split(argv, SHORT))


def parse_groups(groups: list[Group]) -> Config:
    """Like `parse`, for a command line that `split` has grouped by option."""
    model = last(groups, "--model") or ENCODERS.get(last(groups, "--objective"), Config.model)
    base = base_config(last(groups, "--recipe"), model, last(groups, "--data.name"))
    config = read_options(Config, groups, "train", __doc__, base)
    # A model argument on the command line overrides the recipe's with the same key; the recipe's others stay.
    arguments = {pair.partition("=")[0]: pair for pair in (*base.model_args, *config.model_args)}
    config = dataclasses.replace(
        config,
        model_args=tuple(arguments.values()),
        dtype="bfloat16" if config.tpu else config.dtype,
        workdir=config.workdir or default_workdir(config),
    )
    return with_absolute_paths(config)


# Default models of objectives for which the default model of `Config` is unsuitable.
ENCODERS = {
    "deep_supervision": "looped_vit",
    "dino": "vit",
    "es_vit": "cvt",
    "lejepa": "vit",
    "levjepa": "levjepa:VideoTransformer",
    "levjepa_nd": "levjepa_nd:NDTransformer",
    "mae": "vit",
    "mp3": "mp3:ViT",
    "mpp": "vit",
    "simmim": "vit",
}

SHORT = {
    "--data": "--data.name",
    "--teacher": "--distill.teacher",
    "--teacher-weights": "--distill.weights",
    "--teacher-weights-prefix": "--distill.weights-prefix",
    "--cache-teacher": "--distill.cache",
}


def default_workdir(config: Config) -> str:
    """runs/MODEL-DATA or runs/MODEL-OBJECTIVE-DATA; characters unusual in file names become hyphens."""
    name = "-".join(filter(None, (config.model, config.objective, config.data.name)))
    return os.path.join("runs", "".join(c if c.isalnum() or c in "-_." else "-" for c in name))


def require_tpu() -> None:
    """Raises UserError unless JAX runs on TPUs."""
    import jax

    if jax.default_backend() != "tpu":
        raise UserError(f"--tpu needs TPUs, but JAX found {', '.join(map(str, jax.devices()))}")


if __name__ == "__main__":
    sys.exit(run_command(main))
