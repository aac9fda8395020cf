"""Measure what `train/allocator.py` saves on a CPU: training and evaluation with and without it.

    python benchmarks/allocator.py --data folder:CIFAR

CIFAR is CIFAR-10 as image files, `train/CLASS/*` and `test/CLASS/*`. Each model is trained for some steps of the recipe
`cifar10`, then `evaluate` classifies the test images. Every command is a new process; those with and without the
allocator's settings take turns. An untimed first turn compiles the programs. Printed are medians: images per second as
the command reports them, and system time and peak memory of the whole process. Needs Linux and the extra `train`.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIDES = ("without", "with")
COMMAND = """
import importlib, sys
import train.allocator

side, module = sys.argv.pop(1), sys.argv.pop(1)
if side == "without":
    train.allocator.keep_freed_memory = train.allocator.compute_in_main_thread = lambda: None
from train.commandline.terminal import run_command

sys.exit(run_command(importlib.import_module(module).main))
"""
SPEED = re.compile(r"([\d,]+) images/s|Images per second +([\d,]+)")  # as `train` and `evaluate` report it


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="dataset, as in training")
    parser.add_argument("--models", nargs="+", default=["vit/tiny", "cct/2_3x3"])
    parser.add_argument("--steps", type=int, default=120, help="training steps of a run")
    parser.add_argument("--turns", type=int, default=3, help="timed turns")
    options = parser.parse_args()
    for model in options.models:
        found = [turn(model, options) for _ in range(1 + options.turns)][1:]
        for command in ("train", "evaluate"):
            for side in SIDES:
                measured = zip(*(each[command, side] for each in found), strict=True)
                speed, system, peak = map(statistics.median, measured)
                print(f"{model:12} {command:9} {side:8} {speed:6,.0f} images/s", end="")
                print(f"   system {system:5.1f} s   peak {peak:6,.0f} MB", flush=True)


def turn(model: str, options: argparse.Namespace) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Measure both commands on both sides; the result has what `measure` returns."""
    training = (f"--model={model}", f"--data={options.data}", f"--steps={options.steps}", "--recipe=cifar10")
    found = {}
    for side in SIDES:
        with tempfile.TemporaryDirectory() as workdir:
            found["train", side] = measure(side, "train.main", workdir, *training, "--no-report")
            found["evaluate", side] = measure(side, "train.evaluate", workdir)
    return found


def measure(side: str, module: str, workdir: str, *options: str) -> tuple[float, float, float]:
    """Run a command, and return images per second, seconds of system time, and the peak of resident memory in MB."""
    command = [sys.executable, "-c", COMMAND, side, module, f"--workdir={workdir}", *options]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        output = process.stdout.read()
        _, process.returncode, usage = os.wait4(process.pid, 0)
    if process.returncode:
        sys.exit(f"{' '.join(command[3:])} failed")
    speed = next(filter(None, SPEED.findall(output)[-1]))
    return float(speed.replace(",", "")), usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
