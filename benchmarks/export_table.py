"""Which classifiers go through ONNX: writes the table of docs/export.md to standard output.

Each model's smallest preset, with random weights, is converted by jax2onnx and run by ONNX Runtime on batches of one
and three images; its probabilities must equal the model's to 1e-5. Takes ten minutes. `NAME ...` converts only these.
"""

import logging
import re
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnxruntime
from jax2onnx import to_onnx

from tests.cases import CLASSIFIERS, FIRST, example_shape
from tests.test_models import filled
from vit_jax import create_model, list_presets


def error_of(name: str) -> float:
    """The largest difference of a probability. Raises whatever jax2onnx and ONNX Runtime raise."""
    presets = list_presets(name)
    model = create_model(f"{name}/{'tiny' if 'tiny' in presets else presets[0]}", num_classes=10)
    _, *shape = example_shape(model)
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape))))
    logits_of = lambda inputs: jax.tree.leaves(model.apply(variables, inputs))[0]
    probabilities_of = jax.jit(lambda inputs: jax.nn.softmax(logits_of(inputs)))
    (batch,) = jax.export.symbolic_shape("batch")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        inputs = [jax.ShapeDtypeStruct((batch, *shape), np.float32)]
        to_onnx(probabilities_of, inputs, input_names=["inputs"], return_mode="file", output_path=path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    errors = []
    for count in (1, 3):
        inputs = np.random.default_rng(count).standard_normal((count, *shape), np.float32)
        errors.append(np.abs(session.run(None, {"inputs": inputs})[0] - probabilities_of(inputs)).max())
    return float(max(errors))


def main(names: list[str]) -> None:
    """Print a row for each model."""
    logging.disable(logging.ERROR)  # jax2onnx logs what its examples lack
    warnings.simplefilter("ignore")
    print(f"jax2onnx {version('jax2onnx')}, onnxruntime {version('onnxruntime')}, jax {jax.__version__}\n")
    print("| model | ONNX | largest error |\n| --- | --- | --- |")
    for name in names:
        try:
            error = error_of(name)
            row = ("yes" if error <= 1e-5 else "wrong", f"{error:.0e}")
        except Exception as failure:  # each operation fails in its own way
            text = " ".join(re.sub(r"\S*/model\.onnx", "model.onnx", str(failure)).split())[:160]
            row = ("no", f"{type(failure).__name__}: {text}")
        print(f"| `{name}` | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or sorted(name for name in CLASSIFIERS if not FIRST[name].takes_list))
