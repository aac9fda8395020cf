"""Fuzz all readers of files: `python benchmarks/fuzz.py --files 100000`.

Valid files of each kind (`fuzz_kinds.py`) are damaged at random (`fuzz_mutations.py`; the same --seed gives the same
damage) and read by the project's own readers, in separate processes. A reader may read the file, or raise a declared
error with a short printable message. Everything else is a finding: another exception, a crash, too much processor
time, more memory than 2 GiB plus the size of the file, and execution of code, that is code evaluated or compiled, a
module imported from outside of the installed packages, a process started, a connection opened, or a file written
outside of the given folder.

It prints a table, keeps the files of findings, and exits with status 1 if there are any. Linux only.
"""

import argparse
import contextlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks.fuzz_guard import Guard
from benchmarks.fuzz_mutations import mutate

MEMORY = 2 << 30  # bytes of address space, in addition to the size of the file
CHUNK = 1000  # files per process
LONGEST = 4000  # characters of a message


class Task(NamedTuple):
    """The damaged files `start` to `stop` - 1 of a kind."""

    kind: str
    start: int
    stop: int


class Tally:
    """Counts of a process, in memory shared with its parent, so that they survive a crash."""

    FORM = struct.Struct("qqq")

    def __init__(self):
        self._shared = mmap.mmap(-1, self.FORM.size)

    def write(self, number: int, read: int, refused: int) -> None:
        """Store the number of the next file, and how many files before it were read and refused."""
        self.FORM.pack_into(self._shared, 0, number, read, refused)

    def read(self) -> tuple[int, int, int]:
        """The values stored last."""
        return self.FORM.unpack_from(self._shared)


def damaged(kind: str, template: Path, targets: str, seed: int, number: int) -> tuple[Path, bytes]:
    """The damaged file `number`: its path in the template, and its content."""
    rng = random.Random(f"{seed} {kind} {number}")
    files = sorted(path for path in template.glob(targets) if path.is_file())
    file = rng.choice(files)
    return file.relative_to(template), mutate(file.read_bytes(), file.name, rng)


def objection(error: BaseException, declared: tuple[type, ...]) -> str | None:
    """The kind of finding that an error is; None if it is declared and has a suitable message."""
    chain, message = error, str(error)
    while chain is not None:
        if isinstance(chain, MemoryError):
            return "memory"
        chain = chain.__cause__ or chain.__context__
    if "MemoryError" in message or "bad_alloc" in message:
        return "memory"
    if type(error) not in declared and not (isinstance(error, declared) and not isinstance(error, ValueError)):
        return "traceback"
    if len(message) > LONGEST or len(message.splitlines()) > 20 or not message.replace("\n", "").isprintable():
        return "message"
    return None


def work(task: Task, kind, template: Path, out: Path, tally: Tally, seed: int, seconds: float) -> None:
    """Read the files of `task`. A signal ends the process if a reader crashes or takes too long."""
    warnings.simplefilter("ignore")
    scratch = Path(tempfile.mkdtemp(dir=out)).resolve()
    shutil.copytree(template, scratch / "files")
    folder = scratch / "files"
    os.chdir(scratch)
    sys.path.insert(0, "")  # as with `python -m`
    with open(os.devnull, "w") as nothing, open(out / "findings.jsonl", "a", buffering=1) as findings:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        signal.setitimer(signal.ITIMER_REAL, 60 * seconds)
        for path in sorted(folder.glob(kind.targets)):  # first use may import modules, which the guard forbids
            with contextlib.suppress(Exception):
                kind.read(folder, path)
        guard, baseline = Guard(scratch), _address_space()
        read = refused = 0
        for number in range(task.start, task.stop):
            tally.write(number, read, refused)
            name, content = damaged(task.kind, template, kind.targets, seed, number)
            (folder / name).write_bytes(content)
            resource.setrlimit(resource.RLIMIT_AS, (baseline + len(content) + MEMORY, resource.RLIM_INFINITY))
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.setitimer(signal.ITIMER_REAL, 20 * seconds)  # a reader may wait, which takes no processor time
            error = None
            with guard:
                try:
                    kind.read(folder, folder / name)
                except BaseException as raised:
                    error = raised
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            read, refused = read + (error is None), refused + (error is not None)
            trouble = "code" if guard.caught else objection(error, kind.declared) if error else None
            if trouble:
                details = guard.caught[0] if guard.caught else "".join(traceback.format_exception(error, limit=-8))
                record(findings, out, task.kind, number, trouble, details[-6000:], name, content)
            shutil.copyfile(template / name, folder / name)
        tally.write(task.stop, read, refused)
    os.chdir(out)
    shutil.rmtree(scratch, ignore_errors=True)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def record(findings, out: Path, kind: str, number: int, trouble: str, details: str, name: Path, content: bytes) -> None:
    """Store a finding and its file."""
    kept = out / f"{kind}-{number}-{name.name}"
    kept.write_bytes(content)
    entry = dict(kind=kind, number=number, trouble=trouble, file=str(kept), of=str(name), details=details)
    findings.write(json.dumps(entry) + "\n")


def in_a_process(function, *arguments) -> int:
    """Run `function` in a new process, and return its id."""
    if process := os.fork():
        return process
    status = 1
    try:
        function(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def fuzz(kinds: Mapping, files: int, jobs: int, seed: int, seconds: float, out: Path) -> dict[str, Counter]:
    """Read damaged files of all kinds.

    Args:
        kinds: Kinds of files by name.
        files: Number of files, over all kinds.
        jobs: Number of processes at a time.
        seed: Random seed of the damage.
        seconds: Processor time that a file may take.
        out: Folder for findings.

    Returns:
        For each kind, the number of files, read files, refused files, and findings of each type.
    """
    out = out.resolve()
    templates = {kind.make: out / f"template-{kind.make.__name__}" for kind in kinds.values()}
    for make, template in templates.items():
        template.mkdir(parents=True)
        if os.waitpid(in_a_process(make, template), 0)[1]:
            raise SystemExit(f"{make.__name__} could not write valid files")
    total = sum(kind.share for kind in kinds.values())
    tasks, counts = [], {name: Counter() for name in kinds}
    for name, kind in kinds.items():
        number = max(1, round(files * kind.share / total))
        tasks += [Task(name, i, min(i + CHUNK, number)) for i in range(0, number, CHUNK)]
    running: dict[int, tuple[Task, Tally, float]] = {}
    while tasks or running:
        while tasks and len(running) < jobs:
            task, tally = tasks.pop(0), Tally()
            tally.write(task.start, 0, 0)
            kind = kinds[task.kind]
            process = in_a_process(work, task, kind, templates[kind.make], out, tally, seed, seconds)
            running[process] = task, tally, time.monotonic()
        process, status = os.wait()
        task, tally, begun = running.pop(process)
        number, read, refused = tally.read()
        count = counts[task.kind]
        count.update(files=number - task.start, read=read, refused=refused, seconds=time.monotonic() - begun)
        if number < task.stop:
            trouble = {signal.SIGPROF: "hang", signal.SIGALRM: "hang"}.get(os.WTERMSIG(status), "crash")
            name, content = damaged(task.kind, templates[kinds[task.kind].make], kinds[task.kind].targets, seed, number)
            with open(out / "findings.jsonl", "a") as findings:
                details = f"ended with wait status {status}"
                record(findings, out, task.kind, number, trouble, details, name, content)
            count["files"] += 1
            if number + 1 < task.stop:
                tasks.insert(0, Task(task.kind, number + 1, task.stop))
    for line in (out / "findings.jsonl").read_text().splitlines() if (out / "findings.jsonl").exists() else ():
        entry = json.loads(line)
        counts[entry["kind"]][entry["trouble"]] += 1
    return counts


TROUBLES = ("crash", "hang", "code", "memory", "traceback", "message")


def report(counts: Mapping[str, Counter]) -> None:
    """Print a table of the counts."""
    print(f"{'kind':<16}" + "".join(f"{name:>10}" for name in ("files", "read", "refused", *TROUBLES, "files/s")))
    for kind, count in counts.items():
        cells = [count[name] for name in ("files", "read", "refused", *TROUBLES)]
        print(f"{kind:<16}" + "".join(f"{cell:>10,}" for cell in cells) + f"{count['files'] / count['seconds']:>10.0f}")


def main(argv: list[str] | None = None, kinds: Mapping | None = None) -> int:
    """Run the command line `argv` and return its exit status: 1 if there is a finding."""
    if kinds is None:
        from benchmarks.fuzz_kinds import KINDS as kinds  # slow to import
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="+", choices=list(kinds), default=list(kinds))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10, help="processor time that a file may take")
    parser.add_argument("--out", type=Path, help="folder for findings; default: a new temporary folder")
    options = parser.parse_args(argv)
    out = options.out or Path(tempfile.mkdtemp(prefix="fuzz-"))
    chosen = {name: kinds[name] for name in options.kinds}
    counts = fuzz(chosen, options.files, options.jobs, options.seed, options.seconds, out)
    report(counts)
    found = sum(count[name] for count in counts.values() for name in TROUBLES)
    if found:
        print(f"{found} findings: {out / 'findings.jsonl'} and the files beside it")
    else:
        shutil.rmtree(out, ignore_errors=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
