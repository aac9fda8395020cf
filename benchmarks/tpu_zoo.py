"""Cycles of every image classifier on a TPU v5e, as its compiler estimates them, against those of an older commit.

    pip install '.[train,tpu]'
    git worktree add OLDER COMMIT
    python benchmarks/tpu_zoo.py --against OLDER                                  # an hour or more on two cores
    python benchmarks/tpu_zoo.py --against OLDER --models levit/128s 'vit_5/small depth=2'

No TPU is needed. A step is that of `tpu_cycles.py`, of a model that is trained: value and gradients in bfloat16. Each
checkout has a process, and both compile the same model at the same time. If a model takes more than 1.03 times the
older cycles, the operations that differ are printed, and the exit status is 1.
"""

import collections
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # one process for each checkout
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import tyro

from benchmarks.tpu_compile import every_model

LIMIT = 1.03
# Besides the tiny presets of all models: published ones at their own image size, with few blocks per stage, since equal
# blocks take equal time.
LARGER = (
    "cait/xxs24 depth=1 cls_depth=1",
    "cct/14_7x2 num_layers=1",
    "cross_vit/ti depth=1 lg_enc_depth=1 cross_attn_depth=1",
    "crossformer/s depth=1",
    "cvt/13 s2_depth=1 s3_depth=1",
    "levit/128s depth=1",
    "max_vit/t depth=(1,1,1,1)",
    "mobile_vit/xxs depths=(1,1,1)",
    "na_vit/b32 depth=1",
    "parallel_vit/s18x2 depth=1",
    "pit/ti depth=(1,1,1)",
    "regionvit/ti depth=1",
    "scalable_vit/s depth=(1,1,1,1)",
    "simple_vit_with_register_tokens/b16 depth=1",
    "t2t/7 depth=1",
    "twins_svt/s s3_depth=0 s4_depth=0",
    "vit_5/small depth=1",
    "xcit/n12_p16 depth=1 cls_depth=1",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The older commit, and the models."""

    against: Path
    """Checkout of the older commit."""
    models: tuple[str, ...] = ()
    """Image classifiers, each as "NAME/PRESET KEY=VALUE ..."; default: tiny presets of all, and larger ones of some."""
    images: int = 8
    """Images per chip."""
    operations: int = 6
    """Number of operations to print of a model above the limit: those that became most expensive."""
    json: Path | None = None
    """File that the results are also written to. Models that it already has are compiled only if they are named."""


def main(options: Options) -> int:
    """Print a line per model, then the ratios in order. Returns the exit status."""
    older, ours = start_worker(options.against), start_worker(ROOT)
    head = {"jax": jax.__version__, "images": options.images, "against": commit(options.against)}
    rows, failed = kept_rows(options.json, head), []
    tiny = [model for model in every_model() if model.endswith("/tiny")]
    for model in options.models or [model for model in (*tiny, *LARGER) if model not in rows]:
        for worker in (older, ours):
            print(json.dumps({"model": model, "images": options.images}), file=worker.stdin, flush=True)
        before, after = (json.loads(worker.stdout.readline()) for worker in (older, ours))
        if error := before.get("error") or after.get("error"):
            failed.append(model)
            print(f"{model:54} FAILED: {error}", flush=True)
            continue
        rows[model] = row(before, after)
        print(
            "{:54} {older_cycles:>12,} {cycles:>12,} cycles, ratio {ratio:.3f}".format(model, **rows[model]), flush=True
        )
        if rows[model]["ratio"] > LIMIT:
            show_difference(before["operations"], after["operations"], options.operations)
        if options.json:
            options.json.write_text(json.dumps({"options": head, "models": rows}, indent=2) + "\n")
    ratios = sorted((row["ratio"], model) for model, row in rows.items())
    print("\n".join(f"{ratio:.3f}  {model}" for ratio, model in ratios))
    slower = [model for ratio, model in ratios if ratio > LIMIT]
    print(f"{len(rows)} models, above {LIMIT}: {', '.join(slower) or 'none'}; failed: {', '.join(failed) or 'none'}")
    return 1 if slower or failed else 0


def commit(checkout: Path) -> str:
    """The commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def kept_rows(path: Path | None, head: dict) -> dict[str, dict]:
    """The rows of an existing file of results."""
    if path is None or not path.exists():
        return {}
    results = json.loads(path.read_text())
    if results["options"] != head:
        sys.exit(f"{path} has results with other options: {results['options']}")
    return results["models"]


def start_worker(checkout: Path) -> subprocess.Popen:
    """Start a process that compiles the models of a checkout."""
    command = [sys.executable, str(Path(__file__).with_name("tpu_zoo_worker.py"))]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def row(before: dict, after: dict) -> dict[str, float]:
    """The results of a model, of the older commit and of this one."""
    return {
        "older_cycles": before["cycles"],
        "cycles": after["cycles"],
        "ratio": round(after["cycles"] / before["cycles"], 4),
        "older_temporary_bytes": before["temporary_bytes"],
        "temporary_bytes": after["temporary_bytes"],
    }


def show_difference(before: dict[str, int], after: dict[str, int], number: int) -> None:
    """Print the operations with the largest increase and those with the largest decrease in cycles."""
    more = collections.Counter(after)
    more.subtract(before)
    for name, cycles in more.most_common()[:number] + more.most_common()[-number:]:
        print(f"    {cycles:+12,}  {name}")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
