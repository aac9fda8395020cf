"""Write docs/models.md and the table of docs/tpu.md from the code and what was measured, and docs/deviations.md.

    python docs/make_models.py           measures every preset: ten minutes
    python docs/make_models.py cait vit  measures those of these models, and keeps the other rows of docs/models.md

Parameters and FLOPs are those of the presets, with 1000 classes. Ratios are those that `python benchmarks/zoo.py`
measured last (benchmarks/results/zoo.json), the table for TPUs is of `python benchmarks/tpu_compile.py`
(benchmarks/results/tpu-v5e-2x4.json).
"""

import json
import math
import re
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import rich.progress
from flax import linen as nn
from flax.traverse_util import flatten_dict

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from docs import make_deviations
from docs.make_deviations import header
from tests.cases import example_shape
from vit_jax import create_model, list_models, list_presets
from vit_jax.capture import features
from vit_jax.registry import MODELS, model_arguments

RATIOS = ROOT / "benchmarks/results/zoo.json"
COMPILED = ROOT / "benchmarks/results/tpu-v5e-2x4.json"


def main() -> None:
    """Write all three."""
    write_compiled()
    headers = {name: header(name) for name in list_models()}
    ratios = json.loads(RATIOS.read_text()) if RATIOS.exists() else {"machine": "not measured", "models": {}}
    models = [model_row(name, headers[name], ratios["models"].get(name)) for name in headers]
    kept = kept_rows(sys.argv[1:])
    presets = [f"{name}/{preset}" for name in headers for preset in list_presets(name)]
    sizes = [kept.get(preset) or preset_row(preset) for preset in rich.progress.track(presets, "Measuring")]
    page = MODELS_PAGE.format(
        upstream=upstream(),
        models="\n".join(models),
        machine=ratios["machine"],
        features=features_table(kept),
        presets="\n".join(sizes),
    )
    (ROOT / "docs/models.md").write_text(page)
    make_deviations.main()


def kept_rows(measured: list[str]) -> dict[str, str]:
    """The rows of docs/models.md by model or preset, without those of the models in `measured`; none if it is empty.

    Raises:
        ValueError: if a model does not exist.
    """
    for name in measured:
        list_presets(name)
    lines = (ROOT / "docs/models.md").read_text().splitlines() if measured else []
    rows = {found[1]: line for line in lines if (found := re.match(r"\| `([^`]+)` \|", line))}
    return {key: row for key, row in rows.items() if key.partition("/")[0] not in measured}


def upstream() -> str:
    """The release of vit-pytorch that pyproject.toml pins, as "vit-pytorch 1.2.3"."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (pin,) = (line for line in extras["test"] if line.startswith("vit-pytorch=="))
    return pin.replace("==", " ")


def write_compiled() -> None:
    """Put the table of what was compiled for TPUs below its heading, the last of docs/tpu.md."""
    results, page = json.loads(COMPILED.read_text()), ROOT / "docs/tpu.md"
    before, heading, _ = page.read_text().partition(COMPILED_HEADING)
    rows = [
        f"| `{name}` | {row['step']} | {row['megabytes']:.1f} | {row['gigaflops']:.3f} | {row['seconds']:.0f} |"
        for name, row in results["models"].items()
    ]
    page.write_text(before + heading + COMPILED_TABLE.format(**results["options"], rows="\n".join(rows)))


def model_row(name: str, header: dict[str, str], ratio: dict[str, float] | None) -> str:
    """A row of the first table."""
    idea = header["title"].partition(": ")[2] or header["title"]
    measured = [f"{ratio[what]:.2f}" for what in ("forward", "train")] if ratio else ["", ""]
    return "| " + " | ".join([f"[`{name}`]({link(name)})", idea.rstrip("."), paper(header), *measured]) + " |"


def preset_row(preset: str) -> str:
    """A row of the second table."""
    return f"| `{preset}` | " + " | ".join(size(preset)) + " |"


def features_table(kept: dict[str, str]) -> str:
    """The rows of the table of features, new unless `kept`: every classifier whose tiny preset takes one array."""
    rows = []
    for name in list_models():
        if name in kept:
            rows.append(kept[name])
            continue
        if "tiny" not in list_presets(name) or "num_classes" not in model_arguments(name):
            continue
        try:
            model = create_model(f"{name}/tiny", num_classes=10)
            x = jax.ShapeDtypeStruct(example_shape(model), jnp.float32)
            variables = jax.eval_shape(model.init, jax.random.key(0), x)
            found = jax.eval_shape(lambda variables, x, model=model: features(model, variables, x), variables, x)
            blocks = block_count(model, variables, x)
        except (AttributeError, TypeError, ValueError):
            continue
        tokens = ", ".join(str(leaf.shape[1:]) for leaf in jax.tree.leaves(found.tokens) if leaf.ndim > 1)
        rows.append(f"| `{name}` | {x.shape[1:]} | {tokens} | {found.pooled.shape[-1]} | {blocks} |")
    return "\n".join(rows)


def block_count(model: nn.Module, variables: dict, x: jax.ShapeDtypeStruct) -> int:
    """The number of blocks that `features` finds."""
    sown = jax.eval_shape(lambda variables, x: model.apply(variables, x, mutable=["intermediates"])[1], variables, x)
    flat = flatten_dict(sown.get("intermediates", {}), is_leaf=lambda _, value: isinstance(value, tuple))
    return sum(len(outputs) for path, outputs in flat.items() if path[-1] == "block")


def link(name: str) -> str:
    """Where the model's file is, from docs/."""
    return "../" + MODELS[name].partition(":")[0].replace(".", "/") + ".py"


def paper(header: dict[str, str]) -> str:
    """Authors, year and a link; a dash for models without a paper."""
    found = re.match(r"(.+? \d{4})(?: \([^)]*\))?, arXiv:(\d{4}\.\d{4,5})", header.get("Source", ""))
    return f"[{found[1]}](https://arxiv.org/abs/{found[2]})" if found else header.get("Source", "-").rstrip(".")


def size(preset: str) -> tuple[str, str, str]:
    """Sides of one input, parameters in millions, and the GFLOPs of it before any optimisation.

    Dashes for what takes more than one input, or wants to know its shape first.
    """
    name = preset.partition("/")[0]
    classes = dict(num_classes=1000) if "num_classes" in model_arguments(name) else {}
    try:
        model = create_model(preset, **classes)
        x = jax.ShapeDtypeStruct(example_shape(model), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
    except (AttributeError, TypeError, ValueError):
        return "-", "-", "-"
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    flops = jax.jit(model.apply).lower(variables, x).cost_analysis()["flops"]
    return "x".join(map(str, x.shape[1:-1] or x.shape[1:])), f"{count / 1e6:.2f}", f"{flops / 1e9:.2f}"


MODELS_PAGE = """# Models

Written by `python docs/make_models.py`; do not edit. Tests compare every model with {upstream}: outputs and
gradients are equal up to rounding, except where [deviations.md](deviations.md) says otherwise.

The last two columns compare speed with upstream in eager PyTorch: examples per second of ours divided by examples per
second of upstream's, for a forward pass and for a train step of the `tiny` preset at batch 64 ({machine}).
They are empty if upstream cannot run that preset or the model is not a classifier. Small models say little
about large ones; [benchmarks](../benchmarks/README.md) has ViT-Ti/16.

| model | idea | paper | forward | train |
|---|---|---|---:|---:|
{models}

## Features

The shapes of the `tiny` preset's features for one example. Tokens are the output with `num_classes=0`, and the `tokens`
of `vit_jax.capture.features`; `pooled` is the width of what the head reads; `layers` accepts the numbers of blocks.

| model | input | tokens | pooled | blocks |
|---|---|---|---:|---:|
{features}

## Presets

Models that classify have 1000 classes here. One multiply-add counts as two FLOPs.

| preset | input | parameters, M | GFLOPs |
|---|---|---:|---:|
{presets}
"""

COMPILED_HEADING = "## Every model\n"

COMPILED_TABLE = """
Written by `python docs/make_models.py`; do not edit. `python benchmarks/tpu_compile.py` compiled these steps with
jax {jax} for {topology}, whose chips have 16 GiB of memory each. `trainer` is the step of `train.main` for
{batch_size} images of {image_size}x{image_size} pixels over all chips. `bare` is a step of gradients and AdamW alone on
a small model, used where the input is not an image or the model is part of another. GFLOPs are those of one example,
forward and backward.

| model | step | MiB per chip | GFLOPs | compile time, s |
|---|---|---:|---:|---:|
{rows}
"""

if __name__ == "__main__":
    main()
