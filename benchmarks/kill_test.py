"""Kill a run repeatedly at random moments, and compare its result with an undisturbed run: `--kills 50 --signal KILL`.

Every process is started by the same command. Every second one is killed during start-up; the others are killed while
they train or save, after they have saved a checkpoint, early enough that all kills happen within the length of the
run. In the end, parameters, optimizer state and metrics must equal those of the undisturbed run, bit for bit, and
every checkpoint must have been readable after every kill.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"

from tests.runs import RANDOM, TINY, records, stored
from train.run.integrity import damage

# Most of a process's time is start-up. With a save every second step, many kills happen during a save.
OPTIONS = (*TINY, *RANDOM, "--eval-epochs=0.2", "--save-steps=2", "--keep=2")


def start(workdir: Path, cache: Path, steps: int) -> subprocess.Popen:
    """Start the run in a new process, with its output in WORKDIR.log."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    options = (*OPTIONS, f"--steps={steps}", f"--workdir={workdir}", f"--compilation-cache={cache}")
    with open(f"{workdir}.log", "a") as log:
        command = [sys.executable, "-u", "-m", "train.main", *options]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def latest(workdir: Path) -> int:
    """Step of the newest checkpoint under its final name; 0 if there is none."""
    folder = workdir / "checkpoints"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.exists() else 0


def await_save(process: subprocess.Popen, workdir: Path, before: int) -> None:
    """Wait until a run has a checkpoint of a step after `before`, or has ended."""
    while process.poll() is None and latest(workdir) <= before:
        time.sleep(0.05)


def same(workdir: Path, other: Path, step: int) -> bool:
    """Whether two runs ended with the same state, bit for bit, and the same metrics."""
    (state, _), (expected, _) = stored(workdir, step), stored(other, step)
    return (
        state.keys() == expected.keys()
        and all(state[path].tobytes() == expected[path].tobytes() for path in state)
        and all(records(workdir, split) == records(other, split) for split in ("train", "eval"))
    )


def undisturbed(workdir: Path, cache: Path, steps: int) -> tuple[float, float]:
    """Seconds until the first checkpoint of a run, and until its end. Exits if the run fails."""
    start(workdir.with_name("first"), cache, 1).wait()  # fills the compilation cache, which later processes use too
    since = time.monotonic()
    process = start(workdir, cache, steps)
    await_save(process, workdir, 0)
    begin = time.monotonic() - since
    if process.wait():
        sys.exit(Path(f"{workdir}.log").read_text())
    return begin, time.monotonic() - since


def main() -> int:
    """Run the test, print the verdict, write it to results/, and return 0 if the runs are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of kills")
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL", help="signal to kill with")
    parser.add_argument("--steps", type=int, default=800, help="length of the run; it must last longer than all kills")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the moments")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    number = getattr(signal, f"SIG{args.signal}")
    expected = {-number} | ({143} if number == signal.SIGTERM else set())

    with tempfile.TemporaryDirectory() as folder:
        alone, killed, cache = (Path(folder) / name for name in ("alone", "killed", "cache"))
        begin, length = undisturbed(alone, cache, args.steps)
        print(f"an undisturbed run takes {length:.1f} s, {begin:.1f} of them until its first checkpoint", flush=True)

        unreadable, unexpected, moments = 0, [], []
        while len(moments) < args.kills:
            process, since, before = start(killed, cache, args.steps), time.monotonic(), latest(killed)
            if len(moments) % 2:
                await_save(process, killed, before)
                wait = rng.uniform(0, (length - begin) / args.kills)
            else:
                wait = rng.uniform(0, begin)
            try:
                unexpected.append(f"a process ended before it was killed, with status {process.wait(wait)}")
                break
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                moment = time.monotonic() - since
                status = process.wait()
            moments.append(round(moment, 2))
            if status not in expected:
                unexpected.append(f"status {status}")
            # A kill can leave some files of a checkpoint that Orbax was removing; it never removes the latest.
            step = latest(killed)
            unreadable += bool(step and damage(killed / "checkpoints" / str(step))) + (killed / "damaged").exists()
            at = f"after step {step}" if step else "before a checkpoint"
            print(f"{len(moments)}/{args.kills}  {args.signal} at {moment:.2f} s, status {status}, {at}", flush=True)
        status = start(killed, cache, args.steps).wait()
        if status:
            unexpected.append(f"the last process ended with status {status}")
        alike = status == 0 and same(killed, alone, args.steps)
        log = Path(f"{killed}.log").read_text()
        print(log[-2000:] if unexpected or not alike else log.splitlines()[-2])

    result = {
        "signal": args.signal,
        "kills": len(moments),
        "steps": args.steps,
        "seconds_of_an_undisturbed_run": round(length, 1),
        "seconds_until_its_first_checkpoint": round(begin, 1),
        "moments": moments,
        "same_bits": alike,
        "unreadable_checkpoints": unreadable,
        "unexpected": unexpected,
    }
    held = alike and not unreadable and not unexpected
    path = ROOT / "benchmarks/results" / f"kill-test{'' if args.signal == 'KILL' else '-term'}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'HELD' if held else 'FAILED'}: {len(moments)} kills, same bits {alike}, {unreadable} unreadable; {path}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
