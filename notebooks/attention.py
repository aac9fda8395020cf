# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # What a network looks at
#
# [Open in Colab](https://colab.research.google.com/github/vit-jax/vit-jax/blob/main/notebooks/attention.ipynb)
#
# Attention maps show from which patches a transformer gathers information. This notebook trains a network on images for
# which the right answer is known: noise with one coloured square, whose colour is the class. Then it compares the
# attention with the position of the square.

# %%
# %pip install --quiet "vit-jax @ git+https://github.com/vit-jax/vit-jax" optax matplotlib

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from vit_jax import create_model
from vit_jax.capture import attention, features

SIZE, PATCH = 32, 8
GRID = SIZE // PATCH


def draw(rng, count):
    """Images of noise with a square of one of three colours, the colours, and the patches that the squares cover."""
    images = rng.uniform(0, 1, (count, SIZE, SIZE, 3)).astype(np.float32)
    colours, places = rng.integers(0, 3, count), rng.integers(0, GRID, (count, 2))
    for image, colour, (row, column) in zip(images, colours, PATCH * places, strict=True):
        image[row : row + PATCH, column : column + PATCH] *= 0.2
        image[row : row + PATCH, column : column + PATCH, colour] += 0.7
    return images, colours, places @ [GRID, 1]


rng = np.random.default_rng(0)
images, colours, places = draw(rng, 64)

# %% [markdown]
# A small ViT with a class token. Each step draws new images.

# %%
model = create_model(
    "vit", image_size=SIZE, patch_size=PATCH, num_classes=3, dim=32, depth=2, heads=2, mlp_dim=64, dim_head=16
)
params = jax.jit(model.init)(jax.random.key(0), images)["params"]
optimizer = optax.adam(3e-3)
opt_state = optimizer.init(params)


@jax.jit
def step(params, opt_state, images, labels):
    def loss_of(params):
        logits = model.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss


for number in range(1, 81):
    batch, labels, _ = draw(rng, 64)
    params, opt_state, loss = step(params, opt_state, batch, labels)
    if number % 20 == 0:
        print(f"step {number}: loss {loss:.3f}")

# %% [markdown]
# `attention` returns the maps of all layers: (layers, images, heads, from, to). In the last layer, the row of the class
# token (token 0), without its attention to itself, gives the share of each patch.


# %%
@jax.jit
def look(params, images):
    variables = {"params": params}
    return attention(model, variables, images), features(model, variables, images)


maps, found = look(params, images)
accuracy = float((found.logits.argmax(axis=-1) == colours).mean())
shares = np.asarray(maps)[-1].mean(axis=1)[:, 0, 1:]
shares = shares / shares.sum(axis=1, keepdims=True)
on_square = float(shares[np.arange(len(places)), places].mean())
print(f"accuracy {accuracy:.1%}; attention on the square {on_square:.1%}, by chance {1 / GRID**2:.1%}")

# %% [markdown]
# The brighter a patch, the more attention it gets. Training used the colours of the squares, not their
# positions.

# %%
figure, axes = plt.subplots(2, 8, figsize=(12, 3.2), layout="constrained")
for i, (above, below) in enumerate(axes.T):
    above.imshow(images[i].clip(0, 1))
    light = np.kron(shares[i].reshape(GRID, GRID), np.ones((PATCH, PATCH)))[..., None]
    below.imshow(images[i].clip(0, 1) * light / light.max())
    above.axis("off")
    below.axis("off")
plt.show()
assert accuracy > 0.9
assert on_square > 3 / GRID**2

# %% [markdown]
# The features separate the colours, too: the image with the most similar pooled features has the same class.

# %%
pooled = found.pooled / np.linalg.norm(found.pooled, axis=1, keepdims=True)
nearest = (pooled @ pooled.T - 2 * np.eye(len(pooled))).argmax(axis=1)
same = float((colours[nearest] == colours).mean())
print(f"the nearest neighbour has the same colour for {same:.1%} of the images, by chance {1 / 3:.1%}")
assert same > 0.8

# %% [markdown]
# For a run of the trainer, `vit-jax predict --attention OUT.png` draws the same for your own images, and report.html
# shows it. For a published network:
#
#     model, variables, preprocess = load_pretrained("timm/vit_small_patch14_dinov2.lvd142m")
#     maps = attention(model, variables, preprocess("photo.jpg")[None])
