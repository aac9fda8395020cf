"""Compare the input pipeline with torch's DataLoader and torchvision, on the same files, with the same crops.

    python benchmarks/input_pipeline.py FOLDER

FOLDER has photographs, at any depth. Both sides decode them with Pillow, crop at random (area 0.08 to 1, aspect ratio
3/4 to 4/3), resize bilinearly to 224 pixels, and make batches of 64, with two workers: processes, or on our side also
two threads, which are the trainer's default. Flips and normalisation are part of our training step, on the device;
torch's side does them in its workers, as in torchvision's reference recipe ("torch"), or flips alone, with batches of
uint8 ("torch, uint8").

The sides take turns, each time in new processes. Measured are elapsed time and processor time from the second batch to
the last; the latter hardly depends on what else the machine does. Two further measurements:

- Scaled decoding: processor time of a crop of the photographs enlarged to 4000 pixels, with and without; and the
  difference of pixels between both, where the photographs themselves are resized to 24 pixels.
- The share of the time in which the devices wait for images, in a run of the trainer with ViT-Ti/16.

Needs Linux and the extra `test`. The result is written to benchmarks/results/NAME.json.
"""

import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SIZE, BATCH, WORKERS, AREA = 224, 64, 2, 0.08
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Side = Literal["ours", "ours, threads", "torch", "torch, uint8"]
SIDES: tuple[Side, ...] = ("ours", "ours, threads", "torch", "torch, uint8")
LARGE, ENLARGED = 4000, 12  # the longer side in pixels, and the number of enlarged photographs
SMALL = (24, 24)  # pixels; photographs of 500x375 pixels are decoded at 1/4 for it
MODEL, MODEL_BATCH = "vit/ti16", 8


@dataclasses.dataclass(frozen=True)
class Options:
    """The measurements."""

    folder: tyro.conf.Positional[Path]
    """Folder of photographs."""
    batches: int = 20
    """Batches of a measurement."""
    turns: int = 5
    """Measurements of each side."""
    steps: int = 20
    """Steps of the run in which devices may wait."""
    name: str = "input-pipeline"
    """Name of the file of results."""
    side: Side | None = None
    """Measure this side once, and print the result alone."""


def main(options: Options) -> None:
    """Measure all sides in turns, scaled decoding and waiting; print and write the result."""
    if options.side:
        print(json.dumps(measured(options.side, options.folder, options.batches)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.turns):
        for side in SIDES:
            found[side].append(in_new_process(side, options))
            print(side, {name: round(value, 1) for name, value in found[side][-1].items()}, flush=True)
    medians = {
        side: {name: statistics.median(turn[name] for turn in found[side]) for name in found[side][0]} for side in SIDES
    }
    for ours in SIDES[:2]:
        for side in SIDES[2:]:
            ratios = (f"{name} {medians[ours][name] / medians[side][name]:.2f}" for name in medians[side])
            print(f"{ours}, in relation to {side}: {', '.join(ratios)}", flush=True)
    result = {
        "load": os.getloadavg()[0],
        "medians": medians,
        "scaled_decoding": scaled_decoding(options.folder),
        "waiting": waiting(options),
    }
    print(json.dumps({name: result[name] for name in ("scaled_decoding", "waiting")}, indent=2))
    path = ROOT / f"benchmarks/results/{options.name}.json"
    path.write_text(json.dumps(result | {"turns": found}, indent=2) + "\n")


def in_new_process(side: Side, options: Options) -> dict[str, float]:
    """The result of `measured` in a new process."""
    command = [sys.executable, __file__, str(options.folder), f"--batches={options.batches}", f"--side={side}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout)


def measured(side: Side, folder: Path, batches: int) -> dict[str, float]:
    """Images per second of one side, and per second of processor time of this process and its workers."""
    ours = None if "torch" in side else our_batches(folder, side)
    iterator = ours or torch_batches(folder, batches + 1, side)
    next(iterator)
    since, cpu = time.perf_counter(), processor_time()
    for _ in range(batches):
        next(iterator)
    seconds, cpu = time.perf_counter() - since, processor_time() - cpu
    if ours:
        ours.close()
    return {"images_per_second": batches * BATCH / seconds, "images_per_cpu_second": batches * BATCH / cpu}


def scaled_decoding(folder: Path) -> dict[str, float]:
    """Measure the seconds of a crop of large photographs, and the differences of pixels (of 255) in small crops."""
    from PIL import Image

    from train.data.transforms import center_crop, opened, pixels_of, random_crop

    paths = dataset_of(folder, 0)[0].train.paths
    seconds = {True: [], False: []}
    for number, path in enumerate(paths[:ENLARGED]):
        with Image.open(path) as photograph:
            factor = LARGE / max(photograph.size)
            enlarged = photograph.convert("RGB").resize([round(factor * side) for side in photograph.size])
        enlarged.save(content := io.BytesIO(), "JPEG", quality=90)
        for scaled in seconds:
            since = time.process_time()
            with opened(content, 3, path) as image:
                given = image if scaled else pixels_of(image)
                random_crop(given, (SIZE, SIZE), AREA, np.random.default_rng(number))
            seconds[scaled].append(time.process_time() - since)
    differences = []
    for path in paths:
        with opened(path, 3, path) as image, opened(path, 3, path) as whole:
            scaled, exact = center_crop(image, SMALL), center_crop(pixels_of(whole), SMALL)
        differences.append(np.abs(scaled.astype(int) - exact))
    return {
        "seconds": statistics.median(seconds[True]),
        "seconds_whole": statistics.median(seconds[False]),
        "mean_difference": float(np.mean(differences)),
        "largest_difference": int(np.max(differences)),
    }


def waiting(options: Options) -> dict[str, float]:
    """Train on the photographs, without labels. Returns the speeds and the share of waiting in the last record."""
    from benchmarks.runs import train_run
    from train.run.records import read_records

    with tempfile.TemporaryDirectory() as folder:
        workdir, steps = Path(folder, "run"), options.steps
        train_run(
            workdir,
            (
                *(f"--model={MODEL}", "--objective=mae", f"--data=folder:{options.folder}", "--no-report"),
                *(f"--data.image-size={SIZE}", f"--data.min-crop={AREA}", f"--batch-size={MODEL_BATCH}"),
                *(f"--steps={steps}", f"--log-steps={steps // 2}", f"--eval-epochs={steps}"),
            ),
        )
        record = [record for record in read_records(workdir) if record["split"] == "train"][-1]
    return {name: record[name] for name in ("images_per_second", "step_images_per_second", "input_wait")}


def dataset_of(folder: Path, workers: int):
    """The dataset and its settings, as the trainer has them."""
    from train.config import Data
    from train.data import load_dataset

    crop = dict(image_size=(SIZE, SIZE), min_crop=AREA, interpolation="bilinear", mean=MEAN, std=STD, channels=3)
    config = Data(name=f"folder:{folder}", workers=workers, **crop)
    return load_dataset(config, labels=False), config


def our_batches(folder: Path, side: Side) -> Iterator:
    """Batches of the trainer's own pipeline."""
    from train.data import train_batches

    dataset, config = dataset_of(folder, 0 if "threads" in side else WORKERS)
    return train_batches(dataset, config, BATCH, seed=0)


def torch_batches(folder: Path, batches: int, side: Side) -> Iterator:
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
    main(tyro.cli(Options, description=__doc__))
