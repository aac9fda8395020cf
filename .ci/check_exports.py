"""Load each export of a run and compare its probabilities with the table that `vit-jax predict` wrote.

Usage: check_exports.py TABLE EXPORTED
"""

import csv
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import onnxruntime
from PIL import Image

from vit_jax import load_pretrained

table, exported = map(Path, sys.argv[1:])
with table.open(newline="") as file:
    rows = list(csv.DictReader(file))[::4]
loaded = load_pretrained(exported)
pixels = np.stack([np.asarray(loaded.preprocess.fit(Image.open(row["path"]))) for row in rows])
images = np.stack([loaded.preprocess(row["path"]) for row in rows])
session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
program = jax.export.deserialize(bytearray((exported / "model.stablehlo").read_bytes()))

expected = np.float32([[row[f"p({name})"] for name in ("china", "flower")] for row in rows])
for name, probabilities in {
    "safetensors": jax.nn.softmax(jax.jit(loaded.model.apply)(loaded.variables, images)),
    "stablehlo": program.call(pixels),
    "onnx": session.run(None, {"pixels": pixels})[0],
}.items():
    error = np.abs(probabilities - expected).max()
    print(f"{name:12} {len(rows)} images, largest error {error:.1e}")
    if not error <= 1e-5:
        sys.exit(f"{name} differs from the table by {error:.1e}: expected at most 1e-5")
labels = np.array([Path(row["path"]).parent.name == "flower" for row in rows])
accuracy = (expected.argmax(axis=1) == labels).mean()
print(f"accuracy {accuracy:.0%}")
if accuracy < 0.8:
    sys.exit(f"accuracy {accuracy:.0%}: expected at least 80 %")
