"""Files beside an exported run: preprocessing.json, and README.md, which is its model card on the hub."""

import numbers
from typing import Any, NamedTuple

from train.build import model_name, objective_name
from train.config import Config
from train.export import Options
from train.exporting.formats import ONNX, STABLEHLO, preprocessing_of
from train.exporting.program import PIXELS, Program
from train.prediction import are_independent
from train.run.inventory import FOLDER, METRICS, best_step, own_folder
from train.run.json_files import read_json
from train.run.stored import model_variables
from vit_jax import __version__
from vit_jax.images import WHITE
from vit_jax.pretrained.network import TimmNetwork
from vit_jax.printable import counted, printable


class Card(NamedTuple):
    """Facts that only the publisher of a model knows.

    Attributes:
        repository: "ORG/REPO" on the hub.
        license: The hub's name of a licence.
    """

    repository: str | None = None
    license: str | None = None


def describe(program: Program) -> dict[str, Any]:
    """The content of preprocessing.json: the input of the programs, how files become it, and their output."""
    run, preprocess = program.run, preprocessing_of(program.run)
    height, width, channels = run.info.image_shape
    white = WHITE[run.info.pixels]
    links = {
        "probabilities": f"{'sigmoid' if are_independent(run) else 'softmax'} of the logits",
        "numbers": f"outputs of the model * {list(run.info.target_std)} + {list(run.info.target_mean)}",
        "features": "mean of the encoder's tokens, or its class token",
    }
    resized = {} if preprocess is None else {"resize": preprocess.to_config() | {"steps": _steps(preprocess)}}
    return {
        "input": {
            "name": PIXELS,
            "dtype": run.info.pixels,
            "shape": ["batch", height, width, channels],
            "meaning": "pixels as an image file holds them, upright by EXIF, without alpha",
        },
        **resized,
        "normalize": {
            "mean": list(run.info.mean),
            "std": list(run.info.std),
            "meaning": f"(pixels / {white} - mean) / std; {STABLEHLO} and {ONNX} contain it, the weights expect it",
        },
        "output": {"name": program.output, "meaning": links[program.output]},
        "class_names": list(run.info.class_names),
    }


def _steps(preprocess: Any) -> str:
    height, width = (int(side / preprocess.crop_pct) for side in preprocess.image_size)
    resize = {
        "center": f"resize with Pillow so that the image covers {height} x {width} pixels, keeping its aspect ratio",
        "border": f"resize with Pillow so that the image fits into {height} x {width} pixels, keeping its aspect ratio",
        "squash": f"resize with Pillow to {height} x {width} pixels",
    }[preprocess.crop_mode]
    return f"{resize}; then crop the central {preprocess.image_size[0]} x {preprocess.image_size[1]}"


def card(options: Options, program: Program, known: Card) -> str:
    """README.md: metadata for the hub, the run's result and settings, and how to use each file."""
    config, info = program.run.config, program.run.info
    step, metrics = _result(options.workdir)
    results = "".join(f"| {name} | {value:.4g} |\n" for name, value in metrics.items())
    shown = ", ".join(printable(name, 60) for name in info.class_names[:20])
    classes = (
        f" {len(info.class_names):,} classes: {shown}{' ...' if len(info.class_names) > 20 else ''}." if shown else ""
    )
    height, width, channels = info.image_shape
    text = f"""
# {printable(known.repository or config.model)}

{model_name(config.model)} for images of {height} x {width} pixels with {counted(channels, "channel")}, trained with
vit-jax {__version__} on {_data(config)}, objective `{objective_name(config)}`.{classes}

Result on the evaluation images, best checkpoint (step {step:,}):

| metric | value |
| --- | --- |
{results}
## Use

`preprocessing.json` tells how an image file becomes `{PIXELS}`; with vit-jax it is
`load_pretrained(...).preprocess.pixels("photo.jpg")[None]`.
{_blocks(options, program, known)}"""
    return f"---\n{_metadata(program, known, metrics)}\n---\n{text}"


def _result(workdir: str) -> tuple[int, dict[str, float]]:
    step = best_step(workdir)
    metrics = read_json(own_folder(workdir, FOLDER) / str(step) / METRICS, dict[str, numbers.Real])
    return step, {name: float(value) for name, value in metrics.items() if name != "examples"}


def _data(config: Config) -> str:
    """The dataset without the folders that it is in, which are nobody's business."""
    kind, colon, path = config.data.name.partition(":")
    return printable(f"{kind}{colon}{path.rstrip('/').rpartition('/')[2]}")


def _metadata(program: Program, known: Card, metrics: dict[str, float]) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # takes a second to import

    task = "image-feature-extraction" if program.output == "features" else "image-classification"
    data = _data(program.run.config)
    results = [
        EvalResult(task_type=task, dataset_type=data, dataset_name=data, metric_type=name, metric_value=value)
        for name, value in metrics.items()
    ]
    name = (known.repository or program.run.config.model).rpartition("/")[2]
    return ModelCardData(
        license=known.license,
        library_name="vit-jax",
        pipeline_tag=task,
        tags=["vit-jax", "jax", "flax"],
        metrics=list(metrics),
        model_name=name,
        eval_results=results,
    ).to_yaml()


def _blocks(options: Options, program: Program, known: Card) -> str:
    """Examples of use, one for each format that was written."""
    source = f"hf:{known.repository}" if known.repository else "FOLDER"
    outputs = 'model.apply(variables, preprocess("photo.jpg")[None])'
    if program.output == "probabilities":
        outputs = f"jax.nn.{'sigmoid' if are_independent(program.run) else 'softmax'}({outputs})"
    if program.output == "numbers":
        std, mean = program.run.info.target_std, program.run.info.target_mean
        outputs = f"{outputs} * np.array({list(std)}) + np.array({list(mean)})"
    timm = isinstance(model_variables(program.run)[0], TimmNetwork)
    blocks = {"safetensors": WEIGHTS + (FOR_TIMM if timm else ""), "stablehlo": PROGRAM, "onnx": SESSION}
    text = "".join(blocks[name] for name in blocks if name in options.formats)
    return text.format(source=source, outputs=outputs, output=program.output, pixels=PIXELS)


WEIGHTS = """
The weights, with vit-jax:

```python
import jax
import numpy as np
from vit_jax import load_pretrained

model, variables, preprocess = load_pretrained("{source}")
{output} = {outputs}
```
"""
FOR_TIMM = """
timm reads them, too: `timm.create_model("local-dir:FOLDER", pretrained=True)`.
"""
PROGRAM = f"""
A program for JAX without vit-jax, on CPU, CUDA or TPU, for any number of images:

```python
from pathlib import Path

import jax.export

program = jax.export.deserialize(bytearray(Path("FOLDER/{STABLEHLO}").read_bytes()))
{{output}} = program.call({{pixels}})
```
"""
SESSION = f"""
ONNX, for any number of images:

```python
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/{ONNX}")
({{output}},) = session.run(None, {{{{"{{pixels}}": {{pixels}}}}}})
```
"""
