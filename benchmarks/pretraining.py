"""Measure the benefit of self-supervised learning: probes of encoders before and after it, on scikit-learn's digits.

    python benchmarks/pretraining.py

Each objective trains a small ViT with three seeds, with `python -m train.main --objective=...`. `train.probe` then
measures the accuracy of each encoder, and of the same encoder untrained, on the test images. The table and the losses
are written to benchmarks/results/pretraining.json. If stopped, the same command continues.
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path

import rich.progress
import tyro

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.runs import train_run
from train.probe import Options as Probe
from train.probing import probe
from train.run.records import read_records

COMMON = ("--model=vit", "--data.image-size", "16", "16", "--eval-epochs=10")
MODEL = ("--model-args", "patch_size=4", "pool=mean")
UPRIGHT = ("--epochs=30", "--objective-args", "flip=0.0")  # most flipped digits are not digits
ARGUMENTS = {
    "mae": ("--epochs=30",),
    "simmim": ("--epochs=300", "--objective-args", "masking_ratio=0.75"),  # it learns slowly
    "dino": UPRIGHT,
    "lejepa": UPRIGHT,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Objectives and repetitions."""

    objectives: tuple[str, ...] = tuple(ARGUMENTS)
    """Objectives to measure."""
    seeds: int = 3
    """Number of runs of each objective."""
    work: Path = ROOT / "runs/pretraining"
    """Folder for the runs."""


def main(options: Options) -> None:
    """Run the missing runs, then write the result."""
    table = {}
    for name in options.objectives:
        rows = []
        for seed in rich.progress.track(range(options.seeds), description=name):
            workdir = options.work / f"{name}-{seed}"
            train_run(workdir, (f"--objective={name}", f"--seed={seed}", *COMMON, *ARGUMENTS[name], *MODEL))
            losses = [record["loss"] for record in read_records(workdir) if record["split"] == "train"]
            after, before = (probe(Probe(workdir, untrained=untrained, seed=seed)) for untrained in (False, True))
            rows.append({"loss": [losses[0], losses[-1]], "untrained": before, "trained": after})
            print(f"{name} {seed}: {rows[-1]}", flush=True)
        gains = {kind: [row["trained"][kind] - row["untrained"][kind] for row in rows] for kind in ("knn", "linear")}
        table[name] = {"seeds": rows, "gain": {kind: statistics.mean(values) for kind, values in gains.items()}}
    arguments = {"common": [*COMMON, *MODEL], **ARGUMENTS}
    result = {"command": "python benchmarks/pretraining.py", "arguments": arguments, "objectives": table}
    (ROOT / "benchmarks/results/pretraining.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
