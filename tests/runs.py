"""Start small runs of the trainer, and read what they wrote."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from tests import compiler
from train import loop as train_loop
from train.build import build_objective
from train.config import Data
from train.data import load_dataset
from train.main import main
from train.program import build_program
from train.run import checkpoint
from train.run.checkpoint import open_checkpoints, restore
from train.run.stored import abstract_state, read_run_file
from train.sharding import make_mesh

# A run that uses every part of the trainer and takes seconds: 90 steps are two epochs.
TINY = (
    *("--model=vit", "--batch-size=32", "--eval-batch-size=256", "--log-steps=2"),
    *("--model-args", "dim=16", "depth=1", "heads=2", "dim_head=8", "mlp_dim=32"),  # last: a test may add to them
)
# Everything that draws random numbers, so that a wrong resumption or sharding changes the result.
RANDOM = ("dropout=0.1", "--augment.crop-padding=1", "--augment.mixup=0.2", "--augment.repeats=2", "--optim.ema=0.9")


def train(workdir, *options, base=TINY, devices=None, curves=False) -> int:
    """The exit status of a run in this process. Runs of one configuration share their compiled program.

    It writes a report only if the options say `--report`, and draws its curves, which takes as long as many steps, only
    if `curves`.

    By default a mesh in the options has all eight devices, and without one there are two, which take less time.
    """
    mesh = lambda shape: make_mesh(shape, jax.devices()[: devices or (8 if shape else 2)])
    drawn = contextlib.nullcontext() if curves else mock.patch("train.run.ending.draw_curves", lambda workdir: workdir)
    with drawn, mock.patch("train.setup.build_program", shared_program), mock.patch("train.setup.make_mesh", mesh):
        report = () if "--report" in options else ("--no-report",)
        return main([*report, *base, *options, f"--workdir={workdir}"])


def untrained(workdir, *options, base=TINY):
    """Save the state that a run begins with as its only checkpoint. No step is compiled."""

    def save(session, _):
        result = {"loss": 0.0, "accuracy": 0.0}
        train_loop.save(session, 0, result)
        checkpoint.finish(session.checkpoints)
        return result

    with mock.patch("train.setup.compile_step", no_step), mock.patch("train.loop.run", save):
        assert train(workdir, *options, base=base) == 0


def no_step(*_):
    """A compiled function in place of a step that is never called."""
    return jax.jit(lambda: 0).lower().compile()


PROGRAMS = {}


def shared_program(config, info, mesh, objective, total, steps_per_epoch, extensions):
    """`build_program`, once for all runs that differ only in their seed, where they start, and what they keep and say.

    A teacher is not in the config.
    """
    if config.distill.teacher:
        return build_program(config, info, mesh, objective, total, steps_per_epoch, extensions)
    config = dataclasses.replace(config, workdir="", seed=0, init=None, init_from=None)
    config = dataclasses.replace(config, keep=1, log_steps=1, save_steps=0)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, placement="auto"))
    key = repr((config, info, total, steps_per_epoch, extensions)), mesh
    if key not in PROGRAMS:
        program = build_program(config, info, mesh, objective, total, steps_per_epoch, extensions)
        steps = {name: CompiledOnce(getattr(program, name)) for name in ("train_step", "eval_step")}
        PROGRAMS[key] = program._replace(**steps)
    return PROGRAMS[key]


class CompiledOnce:
    """A jitted function that is traced and compiled once for the same abstract arguments."""

    def __init__(self, step):
        self.step, self.compiled = step, {}

    def __call__(self, *arguments):
        return self.step(*arguments)

    def lower(self, *arguments):
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, *leaves
        if key not in self.compiled:
            self.compiled[key] = self.step.lower(*arguments).compile()
        return SimpleNamespace(compile=lambda: self.compiled[key])


def error(capsys, workdir, *options, base=TINY) -> str:
    """Return the one-line message of a run on eight devices that user input must stop."""
    assert train(workdir, *options, base=base, devices=8) == 2
    _out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 2000
    return err


def start(workdir, *options, devices=1, program=("-m", "train.main")):
    """Start a run in a new process with this number of devices. `program` are arguments of Python."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": compiler.flags(devices),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",  # the same program as in this process, so compiled once for both
        # Many processes share one compilation.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, *program, "--no-report", *TINY, *options, f"--workdir={workdir}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def recording(patch):
    """Patch `checkpoint.save` to copy what it saves; returns {step: state}, which runs will fill."""
    states = {}

    def recorder(manager, step, state, *rest, save=checkpoint.save):
        # A copy on the device: a numpy view of the state would keep its memory from being reused.
        states[step] = jax.tree.map(jnp.copy, state)
        save(manager, step, state, *rest)

    patch.setattr(checkpoint, "save", recorder)
    return states


def records(workdir, split):
    """The records of one split, without times."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    every = [json.loads(line) for line in lines]
    times = ("images_per_second", "input_wait", "step_images_per_second")
    return [{k: v for k, v in r.items() if k not in times} for r in every if r["split"] == split]


def stored(workdir, step):
    """The state, as {path: numpy array}, and the data position in the checkpoint of `step`."""
    config, info = read_run_file(workdir)
    manager = open_checkpoints(workdir)
    state, data = restore(manager, step, abstract_state(config, build_objective(config, info), info))
    manager.close()
    return flat(state), data


def flat(tree):
    """Copy the arrays of a tree to {path: numpy array}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def assert_same(state, other):
    """Assert that all leaves are bitwise equal."""
    assert state.keys() == other.keys()
    for path in state:
        np.testing.assert_array_equal(state[path], other[path], err_msg=path, strict=True)


def write_digits(folder, indices):
    """Write held-out digits as image files, and return their paths and labels."""
    held_out = load_dataset(Data()).eval
    paths = [folder / f"{i}.png" for i in indices]
    for i, path in zip(indices, paths, strict=True):
        Image.fromarray(held_out.images[i, ..., 0]).save(path)
    return paths, held_out.labels[list(indices)]
