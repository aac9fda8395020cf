"""Runs of the trainer, for experiments."""

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
