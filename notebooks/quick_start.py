# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Train a vision transformer from the command line
#
# [Open in Colab](https://colab.research.google.com/github/vit-jax/vit-jax/blob/main/notebooks/quick_start.ipynb)
#
# On Colab choose a TPU under *Runtime, Change runtime type*. Everything here also runs on a GPU, and on a CPU with
# fewer blocks and steps.

# %%
# %pip install --quiet "vit-jax[train] @ git+https://github.com/vit-jax/vit-jax"

# %% [markdown]
# The trainer is the command `vit-jax train`. Here it is called as a function with the same options. It trains T2T-ViT
# on scikit-learn's handwritten digits, which need no download. `--tpu` requires TPUs, uses all of them, and computes in
# bfloat16.

# %%
import jax

from train.main import main

backend = jax.default_backend()
size = ["--steps=1300"] if backend != "cpu" else ["--steps=120", "--no-report", "--model-args", "depth=1"]
options = ["--model=t2t", "--workdir=runs/t2t-digits", *size, *(["--tpu"] if backend == "tpu" else [])]
status = main(options)
assert status == 0

# %% [markdown]
# The same options again would continue the run, which is finished. The workdir holds the configuration, the metrics,
# checkpoints, and a picture of the curves:

# %%
import json
from pathlib import Path

records = [json.loads(line) for line in Path("runs/t2t-digits/metrics.jsonl").read_text().splitlines()]
print(records[-1])
assert records[-1]["accuracy"] > 0.9

# %%
import matplotlib.image
import matplotlib.pyplot as plt

plt.figure(figsize=(10, 4))
plt.imshow(matplotlib.image.imread("runs/t2t-digits/curves.png"))
plt.axis("off")
plt.show()

# %% [markdown]
# Predictions in Python, with the run's model, its parameters, and the normalisation that it was trained with:

# %%
import numpy as np
from sklearn.datasets import load_digits

from train import load_run
from train.data.augment import normalize

run = load_run(Path("runs/t2t-digits"))
pixels = np.round(load_digits().images[:16] * 255 / 16).astype(np.uint8)[..., None]
logits = jax.jit(run.objective.predict)(run.params, run.extras, normalize(pixels, run.info.mean, run.info.std))
print("predicted", np.asarray(logits.argmax(axis=-1)))
print("labels   ", load_digits().target[:16])
