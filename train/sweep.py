"""A sweep: runs of all combinations of some settings, one after the other (`vit-jax train --sweep`).

Each run is a separate process, so that neither a failure nor the memory of a run affects the next. The sweep's folder
has the workdirs of its runs, and sweep.json: the options of those that have finished.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from train.commandline.options import Group, check_known, last, options, switch
from train.commandline.terminal import tell
from train.config import Config
from train.errors import UserError, shortened
from train.main import SHORT, parse_groups
from train.run.files import is_remote, reachable, write_atomically
from train.run.json_files import read_json
from train.run.records import read_records
from train.validation import validate
from vit_jax.printable import printable

MOST_RUNS = 1000
LONGEST_NAME = 200  # bytes; file systems allow 255
OF_ALL = ("--sweep", "--workdir", "--coordinator", "--processes", "--process", "--tpu", "--compilation-cache")
NAMING = ("--model", "--objective", "--data.name")  # options that are part of the default workdir
FILE = "sweep.json"
STOPPED = {128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "preempted"}


class Finished(NamedTuple):
    """The content of sweep.json: command lines of the runs that have finished, by name."""

    finished: dict[str, tuple[str, ...]]


class SweptRun(NamedTuple):
    """A run of a sweep.

    Attributes:
        name: Its settings, and the name of its folder in the sweep's.
        argv: Its command line.
        config: What `argv` means.
    """

    name: str
    argv: list[str]
    config: Config


def sweep(groups: Sequence[Group], config: Config) -> int:
    """Run a sweep, or continue it: runs that have finished are skipped.

    Args:
        groups: The command line.
        config: The settings that it gives.

    Returns:
        0 if all runs have finished, 1 if one has failed, or the status of the signal that ended the sweep.

    Raises:
        UserError: If an option of any run is invalid; no run has started then.
    """
    settings = _settings(config.sweep)
    named = last(groups, "--workdir") or not settings.keys() & set(NAMING)
    folder = config.workdir if named else os.path.join("runs", "sweep")
    runs = _runs(groups, settings, folder)
    for run in runs:
        validate(run.config)
    say(f"sweep        {len(runs)} runs in {folder}")
    finished, failed = _finished(folder), {}
    for number, run in enumerate(runs, 1):
        if finished.get(run.name) == run.argv and reachable(run.config.workdir).exists():
            say(f"run {number}/{len(runs)}    {run.name}: has finished")
            continue
        say(f"\nrun {number}/{len(runs)}    {run.name}")
        status = start(run.argv)
        if status in STOPPED:
            return tell(status, f"{STOPPED[status]}: the same command continues the sweep")
        if status:
            failed[run.name] = status
        else:
            finished[run.name] = run.argv
            _note(folder, finished)
    compare(runs, folder)
    if failed:
        names = ", ".join(f"{name} (status {status})" for name, status in failed.items())
        return tell(1, f"stopped: {len(failed)} of {len(runs)} runs failed: {names}; the same command tries them again")
    return 0


def _settings(texts: Sequence[str]) -> dict[str, list[str]]:
    """Values by option, from OPTION=VALUE,VALUE,... Raises UserError for anything else."""
    settings: dict[str, list[str]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        option = f"--{name.removeprefix('--').replace('_', '-')}"
        option = SHORT.get(option, option)
        if not name or not all(value.strip() for value in values.split(",")):
            raise UserError(f"--sweep {shortened(text)}: expected OPTION=VALUE,VALUE,..., as in optim.lr=1e-3,3e-3")
        check_known([Group(option, ("...",))] if options(Config).get(option) is not bool else [], options(Config))
        if option in OF_ALL or option in settings:
            why = "is the same for all runs of a sweep" if option in OF_ALL else "is given twice"
            raise UserError(f"--sweep {shortened(text)}: {option} {why}")
        settings[option] = values.split(",")
    return settings


def _runs(groups: Sequence[Group], settings: dict[str, list[str]], folder: str) -> list[SweptRun]:
    """All combinations, the last option changing first. Raises UserError for an invalid one."""
    groups = [group for group in groups if group.option not in ("--sweep", "--workdir")]
    runs: dict[str, SweptRun] = {}
    combinations = list(itertools.islice(itertools.product(*settings.values()), MOST_RUNS + 1))
    if len(combinations) > MOST_RUNS:
        raise UserError(f"--sweep has more than {MOST_RUNS:,} combinations")
    for values in combinations:
        chosen = [_group(option, value) for option, value in zip(settings, values, strict=True)]
        name = ",".join(_setting(option, value) for option, value in zip(settings, values, strict=True))
        given = [*groups, *chosen, Group("--workdir", (os.path.join(folder, name),))]
        if name in runs:
            raise UserError(f"--sweep gives two runs the name {name}")
        if len(name.encode()) > LONGEST_NAME:
            raise UserError(f"--sweep: the name {shortened(name)} is too long; sweep fewer options at once")
        runs[name] = SweptRun(name, [token for group in given for token in _tokens(group)], parse_groups(given))
    return list(runs.values())


def _group(option: str, value: str) -> Group:
    """An option with one of its swept values, which may have spaces: `data.image-size=32 32,64 64`."""
    if options(Config)[option] is not bool:
        return Group(option, tuple(value.split()))
    if value not in ("true", "false"):
        raise UserError(f"--sweep: {option} is {shortened(value)}; it must be true or false")
    return Group(switch(option, on=value == "true"), ())


def _setting(option: str, value: str) -> str:
    """OPTION=VALUE as part of a file name. Equal numbers are equal texts: 1e-3 is 0.001."""
    with contextlib.suppress(ValueError):
        value = str(float(value)) if not value.strip().isdecimal() else value.strip()
    value = "".join(c if c.isalnum() or c in "-_.+=" else "-" for c in value)
    return f"{option.removeprefix('--')}={value}"


def _tokens(group: Group) -> list[str]:
    return [f"{group.option}={group.values[0]}"] if len(group.values) == 1 else [group.option, *group.values]


def start(argv: list[str]) -> int:
    """Train in a new process with the command line `argv`, and return its exit status.

    Signals to this process go to the new one.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-P", "-m", "train.main", *argv]  # -P: a train.py in this folder is not meant
    # In a separate process group, so that a terminal's Ctrl-C reaches the run only once, through this process.
    with subprocess.Popen(command, env=environment, process_group=0) as process, forwarding_signals(process):
        status = process.wait()
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def forwarding_signals(process: subprocess.Popen) -> Iterator[None]:
    """Context in which `process` gets SIGTERM and SIGINT in place of this process."""
    before = {
        number: signal.signal(number, lambda number, _: process.send_signal(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finished(folder: str) -> dict[str, list[str]]:
    """Command lines of the runs that have finished, by name. Raises UserError if sweep.json is damaged."""
    path = reachable(folder) / FILE
    return {name: list(argv) for name, argv in read_json(path, Finished).finished.items()} if path.exists() else {}


def _note(folder: str, finished: dict[str, list[str]]) -> None:
    write_atomically(reachable(folder) / FILE, json.dumps({"finished": finished}, indent=2) + "\n")


def compare(runs: Sequence[SweptRun], folder: str) -> None:
    """Compare the runs that have an evaluation, if there are several, and write compare.html."""
    from train.evaluation.comparison import show_comparison

    split = lambda run: {record["split"] for record in read_records(run.config.workdir)}
    evaluated = [run.config.workdir for run in runs if "eval" in split(run)]
    if len(evaluated) > 1:
        say("")
        show_comparison(evaluated, None if is_remote(folder) else Path(folder, "compare.html"))


def say(text: str) -> None:
    """Print `text` before the next run prints its own."""
    print("\n".join(printable(line, None) for line in text.split("\n")), flush=True)
