"""Measure the memory of `vit-jax predict`, and how busy `vit-jax evaluate` keeps the device.

    python benchmarks/prediction.py FOLDER

FOLDER has small images in `train/CLASS/` and `test/CLASS/`, 10,000 or more in `test/`, such as CIFAR-10 as JPEG files.

Memory: new processes predict the first 1,000 or 10,000 test images into a CSV file, in turns; the number is their
largest resident memory (VmHWM in /proc/self/status). Speed: the loop of `evaluate` over test images that are decoded
in memory, and the forward pass alone over as many batches that are on the device, in turns. CPU seconds show what the
loop adds, even if the machine does other work; its load is recorded. The result is written to
benchmarks/results/prediction.json. Needs Linux and the extra `test`.
"""

import argparse
import dataclasses
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np

from tests.runs import untrained
from tests.test_predict import untrained as run_of
from train.config import Data
from train.data import load_dataset
from train.data.sources import ArraySource
from train.evaluation.predictions import forward_of, predict_split
from train.image_list import list_images
from train.sharding import make_mesh

SIDE = 32
SMALL = ("dim=64", "depth=2", "heads=2", "dim_head=32", "mlp_dim=128")
LARGE = ("dim=192", "depth=6", "heads=3", "dim_head=64", "mlp_dim=768", "patch_size=4")
COUNTS = (1_000, 10_000)  # images to predict
BATCH = 256  # the default of `evaluate`
PREDICT = """
import sys
from train.predict import main
status = main(sys.argv[1:])
print(open("/proc/self/status").read())
sys.exit(status)
"""
Numbers = dict[str, float]


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of images")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each kind, after one that is discarded")
    parser.add_argument("--batches", type=int, default=8, help=f"batches of {BATCH} images to evaluate")
    options = parser.parse_args()
    result = {
        "command": f"python benchmarks/prediction.py FOLDER --repeats {options.repeats} --batches {options.batches}"
    }
    result |= {"jax": jax.__version__, "device": str(jax.devices()[0]), "cpus": os.cpu_count()}
    result |= {"load before": os.getloadavg()} | memory(options) | speed(options) | {"load after": os.getloadavg()}
    text = json.dumps(result, indent=2)
    print(text)
    (ROOT / "benchmarks/results/prediction.json").write_text(text + "\n")


def memory(options: argparse.Namespace) -> dict:
    """Peak memory of processes that predict."""
    images = list_images([str(options.folder / "test")], ())
    with tempfile.TemporaryDirectory() as folder:
        data = (f"--data=folder:{options.folder}", "--data.image-size", str(SIDE), str(SIDE))
        untrained(f"{folder}/run", base=("--model=vit", *data, "--model-args", *SMALL, "patch_size=4"))
        found = {count: [] for count in COUNTS}
        for _ in range(options.repeats):
            for count, peaks in found.items():
                peaks.append(_peak(folder, images[:count]))
    rows = {f"{count} files": summary(peaks) for count, peaks in found.items()}
    few, many = (statistics.median(peaks) for peaks in found.values())
    return {"peak memory of predict, MB": rows | {"growth": many / few}}


def _peak(folder: str, images: list[Path]) -> float:
    """Largest resident memory, in MB, of a process that predicts `images`."""
    command = [sys.executable, "-c", PREDICT, "-", f"--workdir={folder}/run", f"--out={folder}/out.csv"]
    names = "".join(f"{path}\n" for path in images)
    done = subprocess.run(command, cwd=ROOT, input=names, stdout=subprocess.PIPE, text=True, check=True)
    assert Path(f"{folder}/out.csv").read_text().count("\n") == 1 + len(images)
    return int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) / 1024


def speed(options: argparse.Namespace) -> dict:
    """Images per second, and milliseconds of CPU for an image, of the loop and of the forward pass alone."""
    data, count = Data(name=f"folder:{options.folder}", image_size=(SIDE, SIDE)), BATCH * options.batches
    dataset = load_dataset(data, trains=False)
    order = np.random.default_rng(0).permutation(len(dataset.eval))[:count]
    images, labels = zip(*(dataset.eval[int(i)] for i in order), strict=True)
    source = ArraySource(np.stack(images), np.asarray(labels, np.int32))
    dataset = dataclasses.replace(dataset, eval=source)
    run, mesh = run_of("vit", *LARGE, shape=(SIDE, SIDE, 3)), make_mesh()
    forward, batch = forward_of(run, flip=False, crops=1), jax.device_put(source.images[:BATCH])
    sides = {"loop": lambda: _loop(run, dataset, data, mesh), "forward": lambda: _forward(forward, batch, options)}
    rounds = [{side: measure() for side, measure in sides.items()} for _ in range(1 + options.repeats)][1:]
    rates = {side: [count / each[side]["wall"] for each in rounds] for side in sides}
    cpu = {side: [1000 * each[side]["cpu"] / count for each in rounds] for side in sides}
    ratio = lambda numbers: statistics.median(a / b for a, b in zip(*numbers.values(), strict=True))
    return {
        "model": f"vit {' '.join(LARGE)}, {SIDE} x {SIDE} pixels, {count} images in batches of {BATCH}",
        "images per second": {side: summary(rates[side]) for side in sides} | {"loop / forward": ratio(rates)},
        "CPU ms per image": {side: summary(cpu[side]) for side in sides} | {"loop / forward": ratio(cpu)},
    }


def _loop(run, dataset, data, mesh) -> Numbers:
    """Seconds of the whole loop, without compilation, which ends as `predict_split` says so."""
    since = []
    predicted = predict_split(run, dataset, data, mesh, BATCH, say=lambda _: since.append(_seconds()))
    assert len(predicted.values) == len(dataset.eval)
    return _less(_seconds(), since[-1])


def _forward(forward, batch, options: argparse.Namespace) -> Numbers:
    """Seconds of the forward pass alone, a few batches ahead of the device."""
    forward(batch).block_until_ready()  # compiles
    since = _seconds()
    jax.block_until_ready([forward(batch) for _ in range(options.batches)])
    return _less(_seconds(), since)


def _seconds() -> Numbers:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"wall": time.perf_counter(), "cpu": used.ru_utime + used.ru_stime}


def _less(after: Numbers, before: Numbers) -> Numbers:
    return {key: after[key] - before[key] for key in after}


def summary(numbers: list[float]) -> Numbers:
    """Median, smallest and largest."""
    rounded = lambda number: float(f"{number:.4g}")
    return {"median": rounded(statistics.median(numbers)), "spread": [rounded(min(numbers)), rounded(max(numbers))]}


if __name__ == "__main__":
    main()
