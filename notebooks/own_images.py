# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Train on a folder of your own images
#
# A folder with `train/CLASS/*.jpg` and `val/CLASS/*.jpg` (or `test/`) is a dataset, whatever formats Pillow reads.

# %%
# %pip install --quiet "vit-jax[train]"

# %% [markdown]
# Put your own folder here. For something to look at, this cell draws one: discs and squares of many colours and sizes.

# %%
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

folder = Path("shapes")
rng = np.random.default_rng(0)
for split, count in (("train", 128), ("val", 32)):
    for shape in ("disc", "square"):
        (folder / split / shape).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            background, colour = (tuple(map(int, rng.integers(0, 256, 3))) for _ in range(2))
            image = Image.new("RGB", (48, 40), background)
            left, top, size = rng.integers(2, 16), rng.integers(2, 12), rng.integers(12, 24)
            box = tuple(map(int, (left, top, left + size, top + size)))
            draw = ImageDraw.Draw(image)
            (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=colour)
            image.save(folder / split / shape / f"{i}.png")

# %% [markdown]
# Images of any size become crops of `--data.image-size`; `--data.min-crop` is the least share of its area that a random
# training crop keeps. The augmentation runs on the device.

# %%
from train.main import main

options = [
    "--model=simple_vit",
    f"--data=folder:{folder}",
    *("--data.image-size", "32", "32", "--data.min-crop", "0.8"),
    "--augment.flip",
    f"--epochs={30 if jax.default_backend() != 'cpu' else 5}",
    "--batch-size=32",
    "--workdir=runs/shapes",
]
assert main(options) == 0

# %% [markdown]
# `python -m train.predict` prints the most probable classes of any images:

# %%
from train.predict import main as predict

assert predict(["--workdir=runs/shapes", *map(str, sorted(folder.glob("val/*/0.png")))]) == 0
