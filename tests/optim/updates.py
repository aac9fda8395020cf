"""Parameters, gradients, and the updates of an optimizer, for its tests."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from train.config import Optim
from train.optim import make_optimizer

CONFIG = Optim(lr=0.1, warmup_epochs=2.0, final_lr=0.02, weight_decay=0.3, beta1=0.8, beta2=0.95, clip_norm=0.0)
PARAMS = {
    "fc": {
        "kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32),
        "bias": np.array([0.7, -0.4], np.float32),
    }
}
GRADS = [
    {"fc": {"kernel": np.array(k, np.float32), "bias": np.array(b, np.float32)}}
    for k, b in (
        ([[0.3, -0.1], [2.0, 0.7]], [0.5, -1.5]),
        ([[-0.4, 0.2], [1.0, -0.6]], [0.25, 1.0]),
    )
]


def with_(**changes):
    return dataclasses.replace(CONFIG, **changes)


def updated(config, params, gradients, schedule=lambda step: 0.1 / (step + 1)):
    """Parameters after each update."""
    optimizer = make_optimizer(config, schedule, params)
    state, history, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def run(config, schedule=lambda step: 0.1 / (step + 1)):
    """The layer of PARAMS after each of the two updates."""
    return [params["fc"] for params in updated(config, PARAMS, GRADS, schedule)]


def of_timm(optimizer):
    """torch, and timm's module of an optimizer."""
    torch = pytest.importorskip("torch")
    import tests.upstream  # noqa: F401, which makes torchvision importable, and so timm

    return torch, pytest.importorskip(f"timm.optim.{optimizer}")


def flat(nested):
    return {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(nested)[0]}


def reference(name, w, grads, decay, adapt, masked=False):
    """Two updates of one array in numpy, by the papers' formulas, with learning rates 0.1 and 0.05."""
    b1, b2 = 0.8, 0.95
    m, v, out = 0.0, 0.0, []
    for t, (g, lr) in enumerate(zip(grads, (0.1, 0.05), strict=True), 1):
        if name == "lion":
            update = np.sign(b1 * m + (1 - b1) * g)
            m = b2 * m + (1 - b2) * g
        elif name == "sgd":
            m = b1 * m + g
            update = g + b1 * m
        else:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            eps = 1e-6 if name == "lamb" else 1e-8
            update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        if masked:
            agrees = update * g > 0
            update = update * agrees / agrees.mean()
        update = update + decay * w
        if name == "lamb" and adapt:
            update = update * np.linalg.norm(w) / np.linalg.norm(update)
        w = w - lr * update
        out.append(w)
    return out
