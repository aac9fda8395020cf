"""Compare the input pipeline with torch's DataLoader and torchvision, on the same files, with the same crops.

    python benchmarks/input_pipeline.py FOLDER

FOLDER has photographs, at any depth. Both sides decode them with Pillow, crop at random (area 0.08 to 1, aspect ratio
3/4 to 4/3), resize bilinearly to 224 pixels, and make batches of 64, in two worker processes; ours also in threads,
which is the trainer's default. Flips and normalisation are part of our training step, on the device; torch's side does
them in its workers, as in torchvision's reference recipe ("torch"), or flips alone, with batches of uint8 ("torch,
uint8").

The sides take turns, each time in new processes. Measured are elapsed time and processor time from the second batch to
the last; the latter hardly depends on what else the machine does. Needs Linux and the extra `test`. The result is
written to benchmarks/results/input-pipeline.json, or with --name to another file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SIZE, BATCH, WORKERS, AREA = 224, 64, 2, 0.08
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDES = ("ours", "ours, threads", "torch", "torch, uint8")


def main() -> None:
    """Measure all sides in turns, print and write the result; with --side measure one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of photographs")
    parser.add_argument("--batches", type=int, default=20, help="batches of a measurement")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each side")
    parser.add_argument("--name", default="input-pipeline", help="name of the file of results")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measured(options.side, options.folder, options.batches)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.turns):
        for side in SIDES:
            found[side].append(in_new_process(side, options))
            print(side, {name: round(value, 1) for name, value in found[side][-1].items()}, flush=True)
    result = {
        side: {name: statistics.median(turn[name] for turn in found[side]) for name in found[side][0]} for side in SIDES
    }
    for ours in SIDES[:2]:
        for side in SIDES[2:]:
            ratios = (f"{name} {result[ours][name] / result[side][name]:.2f}" for name in result[side])
            print(f"{ours}, in relation to {side}: {', '.join(ratios)}")
    path = ROOT / f"benchmarks/results/{options.name}.json"
    path.write_text(json.dumps({"load": os.getloadavg()[0], "medians": result, "turns": found}, indent=2) + "\n")


def in_new_process(side: str, options: argparse.Namespace) -> dict[str, float]:
    """The result of `measured` in a new process."""
    command = [sys.executable, __file__, str(options.folder), f"--batches={options.batches}", f"--side={side}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout)


def measured(side: str, folder: Path, batches: int) -> dict[str, float]:
    """Images per second of one side, and per second of processor time of this process and its workers."""
    iterator = torch_batches(folder, batches + 1, side) if "torch" in side else our_batches(folder, side)
    next(iterator)
    since, cpu = time.perf_counter(), processor_time()
    for _ in range(batches):
        next(iterator)
    seconds, cpu = time.perf_counter() - since, processor_time() - cpu
    return {"images_per_second": batches * BATCH / seconds, "images_per_cpu_second": batches * BATCH / cpu}


def dataset_of(folder: Path, workers: int):
    """The dataset and its settings, as the trainer has them."""
    from train.config import Data
    from train.data import load_dataset

    crop = dict(image_size=(SIZE, SIZE), min_crop=AREA, interpolation="bilinear", mean=MEAN, std=STD, channels=3)
    config = Data(name=f"folder:{folder}", workers=workers, **crop)
    return load_dataset(config, labels=False), config


def our_batches(folder: Path, side: str) -> Iterator:
    """Batches of the trainer's own pipeline."""
    from train.data import train_batches

    dataset, config = dataset_of(folder, 0 if "threads" in side else WORKERS)
    return train_batches(dataset, config, BATCH, seed=0)


def torch_batches(folder: Path, batches: int, side: str) -> Iterator:
    """Batches of torch's DataLoader over the same files."""
    import torch
    from PIL import Image

    for operator in ("nms", "qnms"):  # a CPU build of torch lacks them, and torchvision needs their schemas
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou) -> Tensor")
    from torchvision.transforms import v2

    paths = dataset_of(folder, 0)[0].train.paths
    steps = [v2.RandomResizedCrop(SIZE, (AREA, 1)), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    if side == "torch":
        steps += [v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose(steps)

    class Photographs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return batches * BATCH

        def __getitem__(self, index: int):
            with open(paths[index % len(paths)], "rb") as file:
                return transform(Image.open(file).convert("RGB")), 0

    return iter(torch.utils.data.DataLoader(Photographs(), BATCH, shuffle=True, num_workers=WORKERS))


def processor_time() -> float:
    """Seconds of processor time of this process and its children so far."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(entry.name) == os.getpid() or int(fields[1]) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
