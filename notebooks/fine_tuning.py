# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Fine-tune a published vision transformer
#
# [Open in Colab](https://colab.research.google.com/github/vit-jax/vit-jax/blob/main/notebooks/fine_tuning.ipynb)
#
# A network that was trained on millions of images learns a new task from a few hundred. `vit-jax train --model=NAME`
# takes the published ViTs of timm and of the Hugging Face hub by their names.

# %%
# %pip install --quiet "vit-jax[train] @ git+https://github.com/vit-jax/vit-jax"

# %% [markdown]
# Without a network connection, this cell makes a smaller network of the same architecture, with random weights.
# Everything below then runs, but the accuracy says nothing about published weights.

# %%
import jax
import numpy as np

from vit_jax import create_model, load_pretrained, save_pretrained
from vit_jax.pretrained.preprocessing import Preprocessing

source, published = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", True
try:
    load_pretrained(source)
except OSError as error:
    print(error)
    source, published = "stand-in", False
    small = create_model("timm/vit_tiny_patch16_224", image_size=32, patch_size=8, depth=1, num_classes=10)
    variables = jax.jit(small.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    save_pretrained(source, small, variables, Preprocessing(image_size=32, crop_pct=1.0))

# %% [markdown]
# Your images: a folder with a subfolder for each class. As an example, this cell cuts two photographs, a temple and a
# flower, into tiles of 48x48 pixels.

# %%
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

folder = Path("tiles")
for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for row in range(0, 427 - 48, 48):
        for column in range(0, 640 - 48, 48):
            tile = Image.fromarray(photo[row : row + 48, column : column + 48])
            tile.save(folder / name / f"{row}-{column}.png")

# %% [markdown]
# A published name selects the recipe `finetune`: a small learning rate that decreases from the head to the first block,
# and at least 300 steps. The line `start from` names what was loaded: everything but the head, which is new. On a CPU
# this cell takes 50 steps with a larger learning rate, and without random augmentation.

# %%
from train.main import main

quick = ["--steps=50", "--optim.lr=1e-3", "--augment.randaugment-layers=0"] if jax.default_backend() == "cpu" else []
options = [f"--model={source}", f"--data=folder:{folder}", "--workdir=runs/fine-tuned", "--no-report", *quick]
assert main(options) == 0

# %% [markdown]
# Accuracy on the fifth of the tiles that training has not seen:

# %%
from train.run.records import read_records

accuracy = max(record["accuracy"] for record in read_records("runs/fine-tuned") if record["split"] == "eval")
print(f"best accuracy {accuracy:.1%}, by guessing 50%; {'published' if published else 'random'} weights")
assert accuracy > 0.8

# %% [markdown]
# The trained network in Python:

# %%
from train import load_run

run = load_run("runs/fine-tuned")
for name in ("temple", "flower"):
    print(name, run.predict(folder / name / "192-288.png"))
    assert next(iter(run.predict(folder / name / "192-288.png"))) == name

# %% [markdown]
# `--train-only=head` trains the head alone, which is faster. `--lora.rank=8` trains low-rank changes of all blocks,
# which needs less memory. `vit-jax predict`, `evaluate`, `export` and `push` take `--workdir=runs/fine-tuned`.
