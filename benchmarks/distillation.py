"""Measure the benefit of a distillation token: a ViT with and without a teacher, on the same images and epochs.

    python benchmarks/distillation.py --data PATH                   # some images of CIFAR-10, 1 to 2 hours on 2 cores
    python benchmarks/distillation.py --data PATH --scale full      # all 50,000, on a GPU

PATH contains train/CLASS/*.jpg and test/CLASS/*.jpg. First the teacher, a convolutional transformer, is trained with
the same trainer; then students with three seeds, each with and without the teacher. On two cores the teacher is
trained on 5,000 images and the students on 2,000 of them, because published teachers have seen more images than their
users have; on a GPU all are trained on all images. All test images are evaluated. Every run is a command
`python -m train.main`. The result, the logs and a figure are written to benchmarks/results/distillation-SCALE.*. If
stopped, the same command continues.
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


@dataclasses.dataclass(frozen=True)
class Options:
    """Images, and size of the experiment."""

    data: Path
    """Folder with train/CLASS/* and test/CLASS/*."""
    scale: Literal["small", "all", "full"] = "small"
    """`small` and `all` (all images, with a teacher of the recipe `cifar10`) for two cores, `full` for a GPU."""
    work: Path = ROOT / "runs/distillation"
    """Folder for the runs."""
    seeds: int = 3
    """Number of students with the teacher, and of students without it."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """Training images per class for the teacher and for students (None: all), and options of the runs."""

    teacher_images: int | None
    student_images: int | None
    both: tuple[str, ...]
    teacher: tuple[str, ...]
    student: tuple[str, ...]
    distilled: tuple[str, ...] = ("--distill.temperature=3", "--distill.alpha=0.7")


KINDS = ("teacher", "alone", "distilled")
SCALES = {
    "small": Scale(
        teacher_images=500,
        student_images=200,
        both=("--batch-size=64", "--augment.crop-padding=4", "--augment.flip", "--optim.lr=1.5e-3"),
        teacher=("--model=cct/tiny", "--epochs=30", "--eval-epochs=10"),
        student=("--model=vit/tiny", "--epochs=75", "--eval-epochs=15"),
    ),
    "all": Scale(
        teacher_images=None,
        student_images=None,
        both=("--recipe=cifar10",),
        teacher=("--model=cct/2_3x3",),
        student=("--model=vit/tiny", "--epochs=4"),
    ),
    "full": Scale(
        teacher_images=None,
        student_images=None,
        both=(
            *("--batch-size=512", "--augment.crop-padding=4", "--augment.flip", "--augment.randaugment-layers=2"),
            *("--augment.erasing=0.25", "--optim.lr=1e-3", "--optim.warmup-epochs=10", "--dtype=bfloat16"),
            *("--label-smoothing=0.1", "--eval-epochs=10"),
        ),
        teacher=("--model=cct/7_3x1", "--epochs=200"),
        student=(
            *("--model=vit/tiny", "--epochs=150"),
            *("--model-args", "dim=256", "depth=7", "heads=4", "dim_head=64", "mlp_dim=512"),
        ),
    ),
}


def main(options: Options) -> None:
    """Run the missing runs, then write the result."""
    scale = SCALES[options.scale]
    folder = options.work / options.scale
    data, teacher = options.data.expanduser().absolute(), folder / "teacher"
    teacher_images = subset(data, folder / "teacher-images", scale.teacher_images)
    student_images = subset(data, folder / "student-images", scale.student_images)
    runs = {"teacher": (f"--data=folder:{teacher_images}", *scale.both, *scale.teacher)}
    for seed in range(options.seeds):
        student = (f"--seed={seed}", f"--data=folder:{student_images}", *scale.both, *scale.student)
        runs[f"alone-{seed}"] = student
        runs[f"distilled-{seed}"] = (f"--teacher={teacher}", *scale.distilled, *student)

    curves, logs = {}, []
    for name in rich.progress.track(list(runs), description="runs"):
        print(f"{name}: {folder / name}.log", flush=True)
        logs.append(train_run(folder / name, runs[name]))
        curves[name] = [record for record in read_records(folder / name) if record["split"] == "eval"]
    result = summary(options, runs, curves)
    print(json.dumps(result["accuracy"], indent=2))
    out = ROOT / f"benchmarks/results/distillation-{options.scale}"
    out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    hide = lambda text: re.sub(re.escape(str(options.work)), "WORK", text.replace(str(options.data), "PATH"))
    out.with_suffix(".log").write_text("\n".join(map(hide, logs)))
    variants = {kind: [curves[name] for name in curves if name.startswith(kind)] for kind in KINDS}
    draw_accuracy(variants, out.with_suffix(".png"))


def summary(options: Options, runs: dict, curves: dict) -> dict:
    """Summarise the last evaluations of all runs."""
    last = {name: records[-1] for name, records in curves.items()}
    of_kind = lambda kind: [last[f"{kind}-{seed}"]["accuracy"] for seed in range(options.seeds)]
    alone, distilled = of_kind("alone"), of_kind("distilled")
    return {
        "command": f"python benchmarks/distillation.py --data PATH --scale {options.scale}",
        "accuracy": {
            "teacher": last["teacher"]["accuracy"],
            "alone": alone,
            "distilled": distilled,
            "gain of the mean": statistics.mean(distilled) - statistics.mean(alone),
            "spread of the seeds": max(max(kind) - min(kind) for kind in (alone, distilled)),
        },
        "last evaluations": last,
        "arguments": {
            name: [argument for argument in arguments if not argument.startswith(("--data", "--teacher"))]
            for name, arguments in runs.items()
        },
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
