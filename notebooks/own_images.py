# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Train on a folder of your own images
#
# [Open in Colab](https://colab.research.google.com/github/vit-jax/vit-jax/blob/main/notebooks/own_images.ipynb)
#
# A folder with `train/CLASS/*.jpg` and `val/CLASS/*.jpg` (or `test/`) is a dataset; PNG, WebP, TIFF
# and others may be mixed.

# %%
# %pip install --quiet "vit-jax[train] @ git+https://github.com/vit-jax/vit-jax"

# %% [markdown]
# Set `folder` to your own. As an example, this cell draws one: vertical ("upright") and horizontal ("level") stripes of
# random colours and widths.

# %%
from pathlib import Path

import numpy as np
from PIL import Image

folder = Path("stripes")
rng = np.random.default_rng(0)
for split, count in (("train", 100), ("val", 25)):
    for name in ("upright", "level"):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            height, width = rng.integers(40, 60, 2)
            place = np.arange(width)[None, :] if name == "upright" else np.arange(height)[:, None]
            stripes = (place + rng.integers(9)) // rng.integers(3, 8) % 2 == 0
            colours = rng.integers(0, 256, (2, 3))
            pixels = np.where(np.broadcast_to(stripes, (height, width))[..., None], *colours)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")

# %% [markdown]
# Images of any size become crops of `--data.image-size`; `--data.min-crop` is the smallest share of the image's area
# that a random training crop keeps. The augmentation runs on the device. This takes about ten seconds on a CPU.
# Photographs need a larger `--data.image-size`, a larger model such as `--model=vit/s16`, and more epochs.

# %%
from train.main import main

options = [
    "--model=simple_vit",
    f"--data=folder:{folder}",
    *("--data.image-size", "32", "32", "--data.min-crop", "0.8"),
    "--augment.flip",
    "--epochs=5",
    "--optim.lr=3e-3",
    "--batch-size=32",
    "--workdir=runs/own-images",
    "--no-report",
    *("--model-args", "depth=2", "dim=64", "heads=4", "dim_head=16", "mlp_dim=128"),
]
assert main(options) == 0

# %% [markdown]
# Each line of `metrics.jsonl` is a record. Guessing has an accuracy of one over the number of classes. The model must
# get more than halfway from there to 100 %.

# %%
import json

records = [json.loads(line) for line in Path("runs/own-images/metrics.jsonl").read_text().splitlines()]
accuracy = max(record["accuracy"] for record in records if record["split"] == "eval")
chance = 1 / sum(path.is_dir() for path in (folder / "train").iterdir())
print(f"best accuracy {accuracy:.1%}; by guessing {chance:.1%}")
assert accuracy > (1 + chance) / 2

# %% [markdown]
# `vit-jax predict` prints the most probable classes of any images:

# %%
from train.predict import main as predict

assert predict(["--workdir=runs/own-images", *map(str, sorted(folder.glob("val/*/0.png")))]) == 0
