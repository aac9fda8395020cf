"""Compare the time and memory that loading ViT-B/16 takes with timm's.

    python benchmarks/loading.py

timm writes the network with random weights to a folder, as config.json and model.safetensors. New processes then load
it in turns: by `load_pretrained`, or by `timm.create_model` and `load_state_dict` of the file. The result is written
to benchmarks/results/loading.json. Needs Linux, the extra `test`, and timm.

Time is that of loading, which includes the start of JAX or timm's random initial weights, and that of the whole
process, with its imports. The excess is the process's largest resident memory (VmHWM in /proc/self/status, which
includes pages of the mapped file) minus that before loading and minus the size of the result.
"""

import argparse
import importlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

NAME = "vit_base_patch16_224"
SIDES = ("vit_jax", "timm")
Numbers = dict[str, float]


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="processes of each side, after one that is not counted")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/loading", help="folder for the weights")
    parser.add_argument("--side", choices=(*SIDES, "write"), help=argparse.SUPPRESS)  # what a process does
    options = parser.parse_args()
    folder = options.work / NAME
    if options.side:
        print(json.dumps({"vit_jax": load, "timm": load_by_timm, "write": write}[options.side](folder)))
        return

    run = lambda side: process([sys.executable, __file__, f"--work={options.work}", f"--side={side}"])
    run("write")
    rounds = [{side: run(side) for side in SIDES} for _ in range(1 + options.repeats)][1:]
    size = (folder / "model.safetensors").stat().st_size
    medians = {
        side: {key: statistics.median(r[side][key] for r in rounds) for key in rounds[0][side]} for side in SIDES
    }
    ours, theirs = (medians[side] for side in SIDES)
    result = {
        "command": "python benchmarks/loading.py",
        "weights": f"{NAME}, {size} bytes",
        "medians": medians,
        "time relative to timm's": {key: ours[key] / theirs[key] for key in ours if key.endswith(" s")},
        "excess memory relative to the file": {side: medians[side]["excess bytes"] / size for side in SIDES},
        "rounds": rounds,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=2))
    (ROOT / "benchmarks/results/loading.json").write_text(json.dumps(result, indent=2) + "\n")


def process(command: list[str]) -> Numbers:
    """The numbers that a process prints, and its own seconds."""
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return json.loads(out) | {"process wall s": wall, "process cpu s": cpu}


def measure(loads: Callable, size_of: Callable) -> Numbers:
    """Seconds and excess bytes of `loads()`, whose result has `size_of(result)` bytes."""
    before, start, used = memory("VmRSS"), time.perf_counter(), time.process_time()
    result = loads()
    wall, cpu = time.perf_counter() - start, time.process_time() - used
    return {"wall s": wall, "cpu s": cpu, "excess bytes": memory("VmHWM") - before - size_of(result)}


def memory(name: str) -> int:
    """Bytes of the entry `name` of this process's status."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def load(folder: Path) -> Numbers:
    """Measure `load_pretrained`."""
    import jax

    from vit_jax import load_pretrained

    loads = lambda: jax.block_until_ready(load_pretrained(folder).variables)
    return measure(loads, lambda variables: sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))


def load_by_timm(folder: Path) -> Numbers:
    """Measure timm."""
    timm = import_timm()
    from safetensors.torch import load_file

    def loads():
        model = timm.create_model(NAME)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model

    return measure(loads, lambda model: sum(tensor.nbytes for tensor in model.state_dict().values()))


def write(folder: Path) -> Numbers:
    """Write the folder, unless it is there."""
    if not folder.exists():
        timm = import_timm()
        from timm.models import save_for_hf

        folder.parent.mkdir(parents=True, exist_ok=True)
        save_for_hf(timm.create_model(NAME), folder, safe_serialization=True)
    return {}


def import_timm() -> ModuleType:
    """timm, with as many threads as torch takes by itself."""
    import torch

    threads = torch.get_num_threads()
    import tests.upstream  # noqa: F401, which makes torchvision importable

    torch.set_num_threads(threads)
    return importlib.import_module("timm")


if __name__ == "__main__":
    main()
