# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Distil a torchvision network into a vision transformer
#
# [Open in Colab](https://colab.research.google.com/github/vit-jax/vit-jax/blob/main/notebooks/distil_teacher.ipynb)
#
# In DeiT (arXiv:2012.12877) the transformer has one more token. Its output learns from a convolutional teacher, while
# the class token learns from the labels.

# %%
# %pip install --quiet "vit-jax[train] @ git+https://github.com/vit-jax/vit-jax"

# %% [markdown]
# The teacher is torchvision's ResNet-50 (on a CPU ResNet-18) with torchvision's own weights, which are read without
# torch. Without a network connection it has random weights, and the rest of the notebook still runs.

# %%
import jax
import jax.numpy as jnp
import optax

from train.errors import UserError
from train.pretrained import published_file
from vit_jax import create_model
from vit_jax.convert import from_torch
from vit_jax.objectives.distill import Distill, Teacher
from vit_jax.pretrained.torchvision.weights import published_weights

on_cpu = jax.default_backend() == "cpu"
size, depth, classes, batch = (32, 1, 1000, 2) if on_cpu else (224, 4, 1000, 8)
name, weights = ("resnet18", "IMAGENET1K_V1") if on_cpu else ("resnet50", "IMAGENET1K_V2")
images = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
labels = jax.nn.one_hot(jnp.arange(batch), classes)

resnet = create_model(name)
try:
    teacher_variables = from_torch(resnet, published_file(name, weights), images)
except UserError as error:
    print(error)
    teacher_variables = jax.jit(resnet.init)(jax.random.key(1), images)

# %% [markdown]
# Images are normalised for the student; `Teacher` normalises them again as the teacher was trained.

# %%
mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
seen = published_weights(name, weights).preprocessing
teacher = Teacher(resnet, seen.mean, seen.std, student_mean=mean, student_std=std)

student = create_model(
    "vit", image_size=size, patch_size=16, num_classes=classes, dim=192, depth=depth, heads=3, mlp_dim=768
)
objective = Distill(student, teacher, temperature=3.0, alpha=0.5)
params, _ = jax.jit(objective.init)(jax.random.key(2), images)

# %% [markdown]
# The loss and its gradient. The teacher's variables are an argument of the step, so that no gradient is computed for
# them, and neither the optimizer's state nor a checkpoint contains them.

# %%
optimizer = optax.adamw(1e-3)
opt_state = optimizer.init(params)


@jax.jit
def step(params, opt_state, teacher_variables, images, labels):
    def loss_of(params):
        batch = {"image": images, "target": labels}
        return objective.loss(params, {"teacher": teacher_variables}, batch, rngs={}, train=True)

    (_, (metrics, _)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, metrics


losses = []
for _ in range(10):
    params, opt_state, metrics = step(params, opt_state, teacher_variables, images, labels)
    losses.append(float(metrics["loss"]))
print(losses[0], "to", losses[-1])
assert losses[-1] < losses[0]

# %% [markdown]
# Predictions are the mean of both heads, as in DeiT, and do not need the teacher. `params["student"]` are the
# parameters of a plain ViT.

# %%
logits = jax.jit(objective.predict)(params, {}, images)
class_head = jax.jit(student.apply)({"params": params["student"]}, images)
print(logits.shape, class_head.shape)

# %% [markdown]
# On the command line, with a dataset:
#
#     vit-jax train --model=vit --data=folder:PATH --teacher=resnet50 --teacher-weights=IMAGENET1K_V2
#
# The dataset must have the teacher's classes. `--teacher=WORKDIR` takes a run of your own instead.
