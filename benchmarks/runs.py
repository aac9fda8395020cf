"""Runs of the trainer, parts of a dataset and figures, for experiments."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def train_run(workdir: Path, arguments: tuple[str, ...]) -> str:
    """Train, or continue a run that an earlier call began.

    Args:
        workdir: The workdir.
        arguments: Options of the trainer.

    Returns:
        The output of the run, which is also in WORKDIR.log.

    Raises:
        SystemExit: If the run fails.
    """
    command = [sys.executable, "-m", "train.main", f"--workdir={workdir}", *arguments]
    workdir.parent.mkdir(parents=True, exist_ok=True)
    log = workdir.with_name(f"{workdir.name}.log")
    with log.open("a") as file:
        if subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False).returncode:
            sys.exit(f"{' '.join(command)} failed: see {log}")
    return f"== {workdir.name}\n{log.read_text()}"


def subset(data: Path, folder: Path, count: int | None = None, classes: slice = slice(None)) -> Path:
    """Make a folder of links to some training images and all test images of some classes.

    Args:
        data: Folder with train/CLASS/* and test/CLASS/*.
        folder: The new folder.
        count: Number of training images of each class, the first by name; None: all.
        classes: The classes, as a slice of their sorted names.

    Returns:
        `folder`, or `data` if that is all of it.
    """
    if count is None and classes == slice(None):
        return data
    for split, most in (("train", count), ("test", None)):
        for source in sorted((data / split).iterdir())[classes]:
            target = folder / split / source.name
            target.mkdir(parents=True, exist_ok=True)
            for image in sorted(source.iterdir())[:most]:
                if not (target / image.name).exists():
                    (target / image.name).symlink_to(image)
    return folder


def draw_accuracy(variants: Mapping[str, Sequence[list[dict]]], path: Path) -> None:
    """Plot the accuracy of runs over their steps, in one colour for each variant.

    Args:
        variants: For each variant, the evaluation records of its runs.
        path: The figure.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, (variant, runs) in enumerate(variants.items()):
        for records in runs:
            points = [(record["step"], record["accuracy"]) for record in records]
            label = variant if records is runs[0] else None
            axes.plot(*zip(*points, strict=True), color=f"C{number}", marker="o", markersize=3, label=label)
    axes.set(xlabel="step", ylabel="accuracy on the test images")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
