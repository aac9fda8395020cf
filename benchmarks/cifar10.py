"""Experiments on CIFAR-10: what optimizers and augmentation are worth in a few minutes on two cores.

    python benchmarks/cifar10.py --data PATH --experiment best             # 45 minutes
    python benchmarks/cifar10.py --data PATH --experiment optimizers

PATH contains train/CLASS/*.jpg and test/CLASS/*.jpg. Every run is a command `python -m train.main`; the runs of a
variant differ only in their seed. All 10,000 test images are evaluated. The table, the output of the runs and a figure
are written to benchmarks/results/cifar10-EXPERIMENT.*. If stopped, the same command continues.
"""

import dataclasses
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Literal

import rich.progress
import tyro

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.runs import draw_accuracy, subset, train_run
from train.run.records import read_records

RECIPE = ("--recipe=cifar10", "--no-report", "--log-steps=100")
SHORT = ("--model=cct/2_3x3", "--epochs=1", "--eval-epochs=0.25", "--optim.warmup-epochs=0.2")
FEW = ("--model=cct/2_3x3", "--epochs=20", "--eval-epochs=10", "--optim.warmup-epochs=2")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs to compare.

    Attributes:
        variants: Options of the trainer by name of the variant; the others are compared with the first.
        images: Training images of each class, the first by name; None: all.
    """

    variants: dict[str, tuple[str, ...]]
    images: int | None = None


EXPERIMENTS = {
    "best": Experiment({"recipe": ("--model=cct/2_3x3", "--eval-epochs=1")}),
    # The learning rate of AdamW is also tried at half and at twice the value, so that the comparison is not of rates.
    "optimizers": Experiment(
        {
            "adamw": (*SHORT, "--optim.name=adamw"),
            "adamw, lr / 2": (*SHORT, "--optim.name=adamw", "--optim.lr=1e-3"),
            "adamw, lr x 2": (*SHORT, "--optim.name=adamw", "--optim.lr=4e-3"),
            "muon": (*SHORT, "--optim.name=muon"),
        }
    ),
    # In four pairs of runs, steps with Muon took as long as with AdamW, give or take 5 %. So AdamW gets 5 % more steps,
    # to compare with the 781 steps of Muon above.
    "equal-time": Experiment({"adamw, 820 steps": (*SHORT, "--optim.name=adamw", "--steps=820")}),
    # The next two use few images and many epochs: a model that sees each image only a few times does not overfit.
    "regularisation": Experiment(
        {
            "recipe": FEW,
            "no crop, no flip": (*FEW, "--augment.crop-padding=0", "--augment.no-flip"),
            "stochastic depth 0.1": (*FEW, "--drop-path=0.1"),
            "mixup 0.2": (*FEW, "--augment.mixup=0.2"),
            "cutmix 1": (*FEW, "--augment.cutmix=1"),
        },
        images=100,
    ),
    "augmentation": Experiment(
        {
            "recipe": FEW,
            "colour jitter 0.3": (*FEW, "--augment.color-jitter=0.3"),
            "3-Augment": (*FEW, "--augment.three-augment"),
            "RandAugment 2, 9": (*FEW, "--augment.randaugment-layers=2"),
            "random erasing 0.25": (*FEW, "--augment.erasing=0.25"),
            "3 repeats": (*FEW, "--augment.repeats=3"),
        },
        images=100,
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Images, experiment and repetitions."""

    data: Path
    """Folder with train/CLASS/* and test/CLASS/*."""
    experiment: Literal["best", "optimizers", "equal-time", "regularisation", "augmentation"] = "best"
    """The experiment."""
    seeds: int = 3
    """Number of runs of each variant."""
    work: Path = ROOT / "runs/cifar10"
    """Folder for the runs."""


def main(options: Options) -> None:
    """Run the missing runs, then write the result."""
    experiment, folder = EXPERIMENTS[options.experiment], options.work / options.experiment
    images = subset(options.data.expanduser().absolute(), folder / "images", experiment.images)
    runs = {}
    for seed in range(options.seeds):  # variants alternate, so that other work of the machine affects them equally
        for variant, given in experiment.variants.items():
            runs[f"{variant}-{seed}"] = (f"--data=folder:{images}", *RECIPE, f"--seed={seed}", *given)

    records, logs = {}, []
    for name in rich.progress.track(list(runs), description="runs"):
        workdir = folder / re.sub(r"\W+", "_", name)
        print(f"{name}: {workdir}.log", flush=True)
        logs.append(train_run(workdir, runs[name]))
        records[name] = read_records(workdir)
    result = summary(options, experiment, records)
    print("\n".join(table(result["variants"])))
    out = ROOT / f"benchmarks/results/cifar10-{options.experiment}"
    out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    hide = lambda text: text.replace(str(options.work), "WORK").replace(str(options.data), "PATH")
    out.with_suffix(".log").write_text("\n".join(map(hide, logs)))
    seeds = range(options.seeds)
    curves = {name: [evaluations(records[f"{name}-{seed}"]) for seed in seeds] for name in experiment.variants}
    draw_accuracy(curves, out.with_suffix(".png"))


def summary(options: Options, experiment: Experiment, records: dict) -> dict:
    """Summarise the last evaluation and the speed of every variant."""
    variants = {}
    for variant in experiment.variants:
        runs = [records[f"{variant}-{seed}"] for seed in range(options.seeds)]
        accuracy = [evaluations(run)[-1]["accuracy"] for run in runs]
        speeds = [record["images_per_second"] for run in runs for record in run if record["split"] == "train"]
        variants[variant] = {
            "accuracy": accuracy,
            "mean": statistics.mean(accuracy),
            "deviation": statistics.stdev(accuracy) if len(accuracy) > 1 else None,
            "steps": evaluations(runs[0])[-1]["step"],
            "images_per_second": statistics.median(speeds),
        }
    return {
        "command": f"python benchmarks/cifar10.py --data PATH --experiment {options.experiment}",
        "variants": variants,
        "options": experiment.variants,
        "images": experiment.images and 10 * experiment.images,
    }


def evaluations(records: list[dict]) -> list[dict]:
    """The records of evaluations."""
    return [record for record in records if record["split"] == "eval"]


def table(variants: dict) -> list[str]:
    """Lines of a table: accuracy of each variant, and its gain over the first."""
    first, *_ = variants.values()
    lines = [f"{'':24} accuracy of the seeds         mean    gain"]
    for variant, numbers in variants.items():
        seeds = "  ".join(f"{accuracy:.2%}" for accuracy in numbers["accuracy"])
        lines.append(f"{variant:24} {seeds:28} {numbers['mean']:.2%}  {numbers['mean'] - first['mean']:+.2%}")
    return lines


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
