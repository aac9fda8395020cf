"""Measure our speed relative to upstream in eager PyTorch, for the tiny preset of every classifier.

    python benchmarks/zoo.py

Each model is timed as in `step_time.py`; a dozen models take a few minutes. The result of each model is written to
benchmarks/results/zoo.json, which docs/make_models.py reads. Models that it already contains are not measured again.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

import rich.progress

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.step_time import Options, measure
from tests.cases import holds_for

RESULTS = ROOT / "benchmarks/results/zoo.json"
MODEL_ARGS = {"pit": ("mlp_dim=96",)}  # upstream accepts a single number


def main() -> None:
    """Measure the models without a result, and write the results."""
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    for name in rich.progress.track([name for name in holds_for("step_time") if name not in result["models"]]):
        options = Options(model=name, model_args=MODEL_ARGS.get(name, ()), batch_size=64, repeats=5, seconds=0.2)
        try:
            measured = measure(options)
        except SystemExit as error:  # the other models are still measured
            print(f"{name:44} not measured: {error}", flush=True)
            continue
        ratios = {what: measured[what]["ratio"] for what in ("forward", "train")}
        result["models"][name] = ratios | {"logits_differ": measured["logits_differ"]}
        versions = ", ".join(f"{library} {version}" for library, version in measured["versions"].items())
        result["machine"] = f"{options.threads} threads of {processor()}; {versions}"
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
        print(f"{name:44} forward {ratios['forward']:.2f}   train {ratios['train']:.2f}", flush=True)


def processor() -> str:
    """The processor's name if the system reports it, else its architecture."""
    found = (
        subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout if sys.platform == "linux" else ""
    )
    names = [line.partition(":")[2].strip() for line in found.splitlines() if line.startswith("Model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
