"""Train a model: `python -m train.main --model=t2t`. `--help` lists every option."""

import argparse
import contextlib
import dataclasses
import os
import sys

import jax
import tyro

from train.config import Config, UserError
from train.loop import fit
from train.metrics import Diverged
from train.recipes import base_config


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status: 2 for a user's mistake, 1 for a loss that diverged."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        config = parse(argv)
        if config.tpu:
            start_tpu()
        fit(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def parse(argv: list[str]) -> Config:
    """The config that `argv` describes: a recipe's, under what is given."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--objective")
    first.add_argument("--model")
    first.add_argument("--data.name", "--data", dest="data")
    chosen, _ = first.parse_known_args(argv)
    model = chosen.model or ENCODERS.get(chosen.objective, Config.model)
    base = base_config(chosen.recipe, model, chosen.data)
    config = tyro.cli(Config, args=spell_out(argv), default=base, prog="python -m train.main", description=__doc__)
    # What the command line gives for a model argument stands over the recipe's; the rest of the recipe's stays.
    arguments = {pair.partition("=")[0]: pair for pair in (*base.model_args, *config.model_args)}
    return dataclasses.replace(
        config,
        model_args=tuple(arguments.values()),
        dtype="bfloat16" if config.tpu else config.dtype,
        workdir=config.workdir or default_workdir(config),
    )


# What an objective trains where no --model is given, if that is not the default.
ENCODERS = {
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
    "--cache-teacher": "--distill.cache",
}


def spell_out(argv: list[str]) -> list[str]:
    """`--data X` is short for `--data.name X`, and so on."""
    names = (arg.partition("=")[0] for arg in argv)
    return [SHORT.get(name, name) + arg[len(name) :] for name, arg in zip(names, argv, strict=True)]


def default_workdir(config: Config) -> str:
    """runs/MODEL-DATA or runs/MODEL-OBJECTIVE-DATA, with nothing in it that a file name should not have."""
    name = "-".join(filter(None, (config.model, config.objective, config.data.name)))
    return os.path.join("runs", "".join(c if c.isalnum() or c in "-_." else "-" for c in name))


def start_tpu() -> None:
    """Join the other hosts, where there are any, and require TPUs. Raises UserError without them."""
    try:
        with contextlib.suppress(ValueError):  # JAX finds no cluster to join: a single host
            jax.distributed.initialize()
    except RuntimeError as error:
        if "must be called before" not in str(error):  # JAX is not merely in use already, as it is in a notebook
            raise UserError(f"--tpu could not join the other hosts: {error}") from error
    devices = jax.devices()
    if jax.default_backend() != "tpu":
        raise UserError(f"--tpu needs TPUs; the devices here are {', '.join(map(str, devices))}")


if __name__ == "__main__":
    sys.exit(main())
