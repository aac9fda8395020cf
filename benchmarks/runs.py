"""Runs of the trainer and parts of a dataset, for experiments."""

import subprocess
import sys
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
