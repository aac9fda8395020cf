"""Measure the import time of vit_jax, relative to flax.

    python benchmarks/import_time.py

Each import runs in a new interpreter. The imports take turns; an untimed first round fills the caches.
"""

import statistics
import subprocess
import sys

ROUNDS = 11
STATEMENTS = {
    "flax": "import flax.linen",
    "vit_jax": "import vit_jax",  # lazy: no model, no flax
    "a model": "from vit_jax import ViT",
}


def seconds(statement: str) -> float:
    """Seconds that a new interpreter takes for `statement`."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)


def main() -> None:
    """Print the median of each import and its ratio to that of flax."""
    rounds = [{name: seconds(code) for name, code in STATEMENTS.items()} for _ in range(1 + ROUNDS)][1:]
    medians = {name: statistics.median(times[name] for times in rounds) for name in STATEMENTS}
    for name, code in STATEMENTS.items():
        print(f"{code:24} {medians[name]:6.3f} s   {medians[name] / medians['flax']:.2f} of flax")


if __name__ == "__main__":
    main()
