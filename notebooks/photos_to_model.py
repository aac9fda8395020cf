# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # From photographs to a model that others can use
#
# [Open in Colab](https://colab.research.google.com/github/vit-jax/vit-jax/blob/main/notebooks/photos_to_model.ipynb)
#
# A folder with a subfolder of photographs for each class becomes a trained model, a report, and files that work without
# this package.

# %%
# %pip install --quiet "vit-jax[train] @ git+https://github.com/vit-jax/vit-jax"

# %% [markdown]
# 1\. The photographs: set `folder` to your own. As an example, this cell cuts two photographs, a temple and a flower,
# into tiles of 48x48 pixels.

# %%
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

folder = Path("photos")
for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for row in range(0, 427 - 48, 48):
        for column in range(0, 640 - 48, 48):
            tile = Image.fromarray(photo[row : row + 48, column : column + 48])
            tile.save(folder / name / f"{row}-{column}.jpg", quality=95)

# %% [markdown]
# 2\. Train. A fifth of each class is held out for evaluation. The model is tiny, so that it trains on a CPU. For real
# photographs use published weights (`--model=timm/vit_small_patch16_224.augreg_in21k_ft_in1k`), or a larger
# `--data.image-size`.

# %%
import train.main

command = ["--model=simple_vit", f"--data=folder:{folder}", "--data.image-size=32", "--workdir=runs/photos"]
command += ["--augment.flip", "--batch-size=32", "--optim.lr=4e-3", "--steps=80"]
command += ["--eval-epochs=8", "--model-args", "depth=1", "dim=64", "heads=2", "dim_head=32"]
assert train.main.main(command) == 0

# %% [markdown]
# 3\. Evaluate: accuracy, calibration, the worst classes. With `--out` also tables, and a page with the worst mistakes.

# %%
import json

import train.evaluate

assert train.evaluate.main(["--workdir=runs/photos", "--out=evaluation"]) == 0
accuracy = json.loads(Path("evaluation/metrics.json").read_text())["accuracy"]
print(f"accuracy {accuracy:.1%}, by guessing 50%")
assert accuracy > 0.8

# %% [markdown]
# 4\. The run ends with a report: settings, curves, mistakes, attention, and how to use the model. It is a single file
# that needs no network, so you can send it to anyone. Open it in a browser.

# %%
report = Path("runs/photos/report.html")
print(report.resolve().as_uri(), f"{report.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# 5\. Share: `push` writes weights with their configuration, a program that JAX runs without this package, each checked
# against the model, and a model card. Without `--dry-run`, and after `hf auth login`, it uploads them to the Hugging
# Face hub. `--formats onnx` writes a program for ONNX Runtime; `vit-jax export` writes the files without uploading.

# %%
import train.push

assert train.push.main(["me/photos", "--workdir=runs/photos", "--license=mit", "--dry-run", "--out=published"]) == 0
print(sorted(path.name for path in Path("published").iterdir()))
print(Path("published/README.md").read_text().partition("# me/photos")[2][:600])

# %% [markdown]
# 6\. Load it as others will, by `load_pretrained("hf:ORG/REPO")`, here from the folder, and classify photographs:

# %%
import jax

from vit_jax import load_pretrained

model, variables, preprocess = load_pretrained("published")
names = json.loads(Path("published/config.json").read_text())["label_names"]
classify = jax.jit(lambda pixels: jax.nn.softmax(model.apply(variables, pixels[None])[0]))
for name in names:
    shares = classify(preprocess(next((folder / name).glob("192-*.jpg"))))
    print(name, {each: f"{share:.1%}" for each, share in zip(names, shares.tolist(), strict=True)})
    assert names[int(shares.argmax())] == name
