# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A vit_jax module in a training loop of your own
#
# [Open in Colab](https://colab.research.google.com/github/vit-jax/vit-jax/blob/main/notebooks/flax_loop.ipynb)
#
# Models are Flax linen modules: `init` makes parameters, and `apply` is a pure function of them.

# %%
# %pip install --quiet "vit-jax @ git+https://github.com/vit-jax/vit-jax" optax scikit-learn

# %%
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

from vit_jax import create_model, list_models, list_presets

print(len(list_models()), "models, among them", list_models()[:5])
print("presets of cct:", list_presets("cct"))

# %% [markdown]
# Data: 1,797 digits of 8x8 pixels, in NHWC as everywhere.

# %%
digits = load_digits()
images = (digits.images[..., None] / 8 - 1).astype(np.float32)
labels = digits.target
train, test = slice(0, 1437), slice(1437, None)

# %% [markdown]
# A model by name, with upstream's argument names. `train=True` switches dropout on, which then needs an rng.

# %%
model = create_model(
    "vit",
    image_size=8,
    patch_size=(1, 8),
    channels=1,
    num_classes=10,
    dim=64,
    depth=2,
    heads=4,
    dim_head=16,
    mlp_dim=128,
    dropout=0.1,
)
params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
print(f"{sum(p.size for p in jax.tree.leaves(params)):,} parameters")

epochs = 40 if jax.default_backend() != "cpu" else 5
steps_per_epoch = 1437 // 64
schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, steps_per_epoch, epochs * steps_per_epoch)
optimizer = optax.adamw(schedule, weight_decay=0.05)
opt_state = optimizer.init(params)


@jax.jit
def step(params, opt_state, number, images, labels):
    key = jax.random.fold_in(jax.random.key(1), number)

    def loss_of(params):
        logits = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


# %%
rng, number = np.random.default_rng(0), 0
for epoch in range(epochs):
    for rows in rng.permutation(1437)[: steps_per_epoch * 64].reshape(steps_per_epoch, 64):
        number += 1
        params, opt_state, loss = step(params, opt_state, number, images[rows], labels[rows])
    print(f"epoch {epoch + 1}: loss {loss:.3f}")

# %% [markdown]
# Evaluation is the default of `apply`. Attention maps are collected on request:

# %%
logits, collected = jax.jit(lambda params, images: model.apply({"params": params}, images, mutable=["intermediates"]))(
    params, images[test]
)
accuracy = float((logits.argmax(axis=-1) == labels[test]).mean())
print(f"test accuracy {accuracy:.1%}")
maps = collected["intermediates"]["transformer"]["attn_0"]["attn"][0]
print("attention of the first block", maps.shape, "whose rows sum to", float(maps.sum(axis=-1).mean()))
assert accuracy > 0.6

# %% [markdown]
# Weights go to torch and come back:

# %%
from vit_jax.convert import from_torch, to_torch

state_dict = to_torch(model, {"params": params})  # what vit_pytorch's ViT(...).load_state_dict(strict=True) takes
again = from_torch(model, state_dict, images[:1])
assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, again["params"])))
