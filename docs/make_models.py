"""Write docs/models.md, docs/deviations.md and the table of docs/tpu.md from the code and what was measured.

    python docs/make_models.py

Parameters and FLOPs are those of the presets, with 1000 classes. Ratios are those that `python benchmarks/zoo.py`
measured last (benchmarks/results/zoo.json), the table for TPUs is of `python benchmarks/tpu_compile.py`
(benchmarks/results/tpu-v5e-2x4.json).
"""

import ast
import importlib
import json
import math
import re
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import rich.progress

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.cases import example_shape
from vit_jax import create_model, list_models, list_presets
from vit_jax.registry import MODELS, model_arguments

RATIOS = ROOT / "benchmarks/results/zoo.json"
COMPILED = ROOT / "benchmarks/results/tpu-v5e-2x4.json"
SECTIONS = ("Source", "Upstream", "Differs from upstream", "Differs from the paper", "Axes")


def main() -> None:
    """Write all three."""
    write_compiled()
    headers = {name: header(name) for name in list_models()}
    ratios = json.loads(RATIOS.read_text()) if RATIOS.exists() else {"machine": "not measured", "models": {}}
    models = [model_row(name, headers[name], ratios["models"].get(name)) for name in headers]
    presets = [f"{name}/{preset}" for name in headers for preset in list_presets(name)]
    sizes = [preset_row(preset) for preset in rich.progress.track(presets, "Measuring")]
    page = MODELS_PAGE.format(
        upstream=upstream(), models="\n".join(models), machine=ratios["machine"], presets="\n".join(sizes)
    )
    (ROOT / "docs/models.md").write_text(page)
    (ROOT / "docs/deviations.md").write_text(DEVIATIONS_PAGE + "\n".join(deviations(headers)))


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


def header(name: str) -> dict[str, str]:
    """The header of the model `name`'s file: "title", and the text of each of SECTIONS that it has."""
    source = importlib.import_module(MODELS[name].partition(":")[0]).__file__
    return read_header(ast.get_docstring(ast.parse(Path(source).read_text())))


def read_header(docstring: str) -> dict[str, str]:
    """The parts of a model file's docstring, each on one line."""
    title, _, rest = docstring.partition("\n")
    starts = rf"(?:^|(?<=\s))({'|'.join(SECTIONS)}): "
    _, *parts = re.split(starts, " ".join(rest.split()))
    return {"title": title} | dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))


def model_row(name: str, header: dict[str, str], ratio: dict[str, float] | None) -> str:
    """A row of the first table."""
    idea = header["title"].partition(": ")[2] or header["title"]
    measured = [f"{ratio[what]:.2f}" for what in ("forward", "train")] if ratio else ["", ""]
    return "| " + " | ".join([f"[`{name}`]({link(name)})", idea.rstrip("."), paper(header), *measured]) + " |"


def preset_row(preset: str) -> str:
    """A row of the second table."""
    return f"| `{preset}` | " + " | ".join(size(preset)) + " |"


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


def deviations(headers: dict[str, dict[str, str]]) -> list[str]:
    """The deviations of each model from upstream and its paper."""
    lines = []
    for name, header in headers.items():
        lines += [f"## `{name}`", ""]
        for section in ("Differs from upstream", "Differs from the paper"):
            lines += [f"{section}: {header[section]}", ""] if section in header else []
    return lines


MODELS_PAGE = """# Models

Written by `python docs/make_models.py`; do not edit. Every model computes what its twin in {upstream}
computes, values and gradients; what it does otherwise stands in [deviations.md](deviations.md).

The last two columns are the speed of ours over upstream's in eager PyTorch, forward and train step, of the `tiny`
preset at batch 64 ({machine}): above 1, ours is the faster; they are empty where upstream
does not run that preset, or is no classifier. They say little about large models, for which
[benchmarks](../benchmarks/README.md) has ViT-Ti/16.

| model | idea | paper | forward | train |
|---|---|---|---:|---:|
{models}

## Presets

With 1000 classes, where there are classes. A multiplication and an addition are two FLOPs.

| preset | input | parameters, M | GFLOPs |
|---|---|---:|---:|
{presets}
"""

COMPILED_HEADING = "## Every model\n"

COMPILED_TABLE = """
Written by `python docs/make_models.py`; do not edit. Compiled by `python benchmarks/tpu_compile.py` with jax {jax} for
{topology}, whose chips have 16 GiB. `trainer` is the trainer's own step, of {batch_size} images of {image_size} pixels
squared over all chips; `bare` is one of gradients and AdamW alone, of a small model, where the input is no image or the
model is a part of another. GFLOPs are an example's, forward and backward.

| model | step | MiB per chip | GFLOPs | compiled in, s |
|---|---|---:|---:|---:|
{rows}
"""

DEVIATIONS_PAGE = """# Deviations

Written by `python docs/make_models.py` from the heads of the model files; do not edit.

"""

if __name__ == "__main__":
    main()
