"""Compare the speed of our forward pass and training step with upstream in PyTorch, on the same weights and batch.

    python benchmarks/step_time.py --model vit/ti16

Each library runs in its own process, so that the thread pools do not compete. The two are timed in turns, so that other
work of the machine affects both. A ratio above 1 means that ours is faster.
"""

import dataclasses
import json
import os
import pickle
import statistics
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("step_time_worker.py")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    model: str = "vit/ti16"
    """Model to time, as NAME or NAME/PRESET; NAME alone is NAME/tiny."""
    image_size: int | None = None
    """Height and width in pixels; default: the preset's."""
    model_args: tuple[str, ...] = ()
    """Arguments of the model that override its preset, as KEY=VALUE."""
    batch_size: int = 8
    """Images per step."""
    threads: int = 2
    """Number of threads of each library."""
    repeats: int = 20
    """Number of timed blocks of each library, after an untimed one."""
    seconds: float = 0.5
    """Length of a block; it has as many calls as fit, and at least one."""
    forward_only: bool = False
    """Leave out the train step."""
    products: bool = False
    """Also time the matrix products of a forward pass through the blocks of `vit`, alone."""
    compiled: bool = False
    """Compile upstream's model with `torch.compile`."""
    python: str = sys.executable
    """Python interpreter for our side, to measure a jax that is installed in another environment than torch."""
    json: Path | None = None
    """File that the result is also written to."""


def main(options: Options) -> None:
    """Time both libraries and print medians and ratios."""
    if options.products and options.model.partition("/")[0] != "vit":
        sys.exit(f"--products supports --model=vit/PRESET, not {options.model}")
    result = measure(options)
    report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(options: Options) -> dict:
    """Times and versions of both libraries, and the difference of their logits."""
    torch, ours = Worker("torch", sys.executable, options), Worker("jax", options.python, options)
    logits = torch.call("logits"), ours.call("load", torch.call("state"))
    result = {
        "options": {key: value for key, value in vars(options).items() if key not in ("python", "json")},
        "versions": {**torch.call("versions"), **ours.call("versions")},
        "logits_differ": float(abs(logits[0] - logits[1]).max() / abs(logits[0]).max()),
    }
    for what in timed(options):
        result[what] = compare(what, torch, ours, options)
    torch.stop()
    ours.stop()
    return result


def timed(options: Options) -> list[str]:
    """The names of the measurements, in order."""
    names = ["forward"]
    if not options.forward_only:
        names.append("train")
    if options.products:
        names.append("products")
    return names


def compare(what: str, torch: "Worker", ours: "Worker", options: Options) -> dict[str, float]:
    """Milliseconds per call of both, and the ratio torch / ours: of the medians, and its range over pairs of blocks."""
    calls = {}
    for worker in (torch, ours):
        worker.call("milliseconds", what, 2)  # compiles, allocates memory and starts threads
        calls[worker] = max(1, round(1000 * options.seconds / worker.call("milliseconds", what, 2)))
    pairs = [
        [worker.call("milliseconds", what, calls[worker]) for worker in (torch, ours)] for _ in range(options.repeats)
    ]
    torch_ms, our_ms = map(statistics.median, zip(*pairs, strict=True))
    ratios = [theirs / our for theirs, our in pairs]
    return {
        "torch_ms": torch_ms,
        "ours_ms": our_ms,
        "ratio": torch_ms / our_ms,
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def report(result: dict) -> None:
    """Print a result of `measure`."""
    options = result["options"]
    print(f"{options['model']}, batch {options['batch_size']}, float32, {options['threads']} threads")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    print(f"logits differ by {result['logits_differ']:.1e} of the largest")
    for what in ("forward", "train", "products"):
        if numbers := result.get(what):
            print(
                f"{what:8} torch {numbers['torch_ms']:7.1f} ms   ours {numbers['ours_ms']:7.1f} ms   "
                f"ratio {numbers['ratio']:.2f} (pairs {numbers['ratio_min']:.2f} to {numbers['ratio_max']:.2f})"
            )


class Worker:
    """A process with one library, which answers calls one at a time."""

    def __init__(self, side: str, python: str, options: Options):
        threads = str(options.threads)
        self.process = subprocess.Popen(
            [python, WORKER, side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "NPROC": threads, "OMP_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu"},
        )
        self.call(vars(options))

    def call(self, *request):
        """The worker's result for `request`: the name of a method and its arguments."""
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError):
            raise SystemExit("step_time.py: a worker stopped; its error is above") from None

    def stop(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options, description=__doc__))
