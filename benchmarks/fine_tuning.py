"""Measure the benefit of pretraining: a ViT fine-tuned on half of CIFAR-10's classes, against one trained from scratch.

    python benchmarks/fine_tuning.py CIFAR          # half an hour to an hour on 2 cores

CIFAR contains train/CLASS/*.jpg and test/CLASS/*.jpg. The ViT is pretrained on the first five classes, supervised.
Then runs with three seeds learn the other five classes, from 500 images and from 25,000, from scratch or from the
pretrained trunk; only `--init-from` and the layer-wise decay of the learning rate differ. Every run is a command
`python -m train.main`. The result and the logs are written to benchmarks/results/fine-tuning.*. If stopped, the same
command continues.
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

from benchmarks.runs import subset, train_run
from train.run.records import read_records

FIRST, SECOND = slice(0, 5), slice(5, 10)  # CIFAR-10's classes in alphabetical order

COMMON = ("--model=vit/tiny", "--recipe=cifar10")
PRETRAINING = ("--epochs=6",)
RUNS = {  # images of five classes: options
    500: ("--epochs=30", "--batch-size=50", "--optim.warmup-epochs=3", "--eval-epochs=30"),
    25_000: ("--epochs=1", "--optim.warmup-epochs=0.2"),
}
FINE_TUNING = ("--optim.layer-decay=0.75",)


@dataclasses.dataclass(frozen=True)
class Options:
    """Images and repetitions."""

    data: tyro.conf.Positional[Path]
    """Folder with train/CLASS/* and test/CLASS/*."""
    work: Path = ROOT / "runs/fine-tuning"
    """Folder for the runs."""
    seeds: int = 3
    """Number of runs of each kind on the second half of the classes."""


def main(options: Options) -> None:
    """Run the missing runs, then write the result."""
    runs = commands(options)
    records, logs = {}, []
    for name in rich.progress.track(list(runs), description="runs"):
        print(f"{name}: {options.work / name}.log", flush=True)
        logs.append(train_run(options.work / name, runs[name]))
        records[name] = [record for record in read_records(options.work / name) if record["split"] == "eval"][-1]
    table = []
    for count in RUNS:
        for start in ("scratch", "supervised"):
            found = [records[f"{start}-{count}-{seed}"]["accuracy"] for seed in range(options.seeds)]
            row = {"images": count, "start": start, "mean": statistics.mean(found), "seeds": found}
            table.append(row | {"spread": max(found) - min(found)})
            print(table[-1], flush=True)
    arguments = {
        name: [argument for argument in command if not argument.startswith(("--data", "--init-from"))]
        for name, command in runs.items()
    }
    result = {"command": "python benchmarks/fine_tuning.py CIFAR", "accuracy": table}
    result |= {"last evaluations": records, "arguments": arguments}
    out = ROOT / "benchmarks/results/fine-tuning"
    out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    out.with_suffix(".log").write_text("\n".join(logs).replace(str(options.work), "WORK"))


def commands(options: Options) -> dict[str, tuple[str, ...]]:
    """The arguments of all runs by name, in the order in which they are needed; makes the folders of images."""
    data, work = options.data.expanduser().absolute(), options.work
    first = subset(data, work / "first-half", classes=FIRST)
    runs = {"supervised": (*COMMON, f"--data=folder:{first}", *PRETRAINING)}
    for count, arguments in RUNS.items():
        images = subset(data, work / f"second-half-{count}", count // 5, SECOND)
        for seed in range(options.seeds):
            scratch = (*COMMON, f"--data=folder:{images}", *arguments, f"--seed={seed}")
            runs[f"scratch-{count}-{seed}"] = scratch
            start = f"--init-from={work / 'supervised'}"
            runs[f"supervised-{count}-{seed}"] = (*scratch, start, *FINE_TUNING)
    return runs


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
