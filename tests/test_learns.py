"""Every classifier learns: on a few digits its loss falls within some steps."""

import jax
import numpy as np
import optax
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.cases import FIRST, holds_for
from tests.cases.case import build
from vit_jax.objectives.classify import Classify


def digits(count: int, height: int, width: int, channels: int) -> dict[str, jax.Array]:
    """The first digits as a batch of images of this shape."""
    scans, labels = load_digits(return_X_y=True)
    enlarge = lambda scan: np.asarray(Image.fromarray(scan.reshape(8, 8).astype(np.float32)).resize((width, height)))
    images = np.stack([enlarge(scan) for scan in scans[:count]]) / 8 - 1
    images = np.repeat(images[..., None], channels, axis=-1).astype(np.float32)
    return jax.device_put({"image": images, "target": np.eye(10, dtype=np.float32)[labels[:count]]})


# What other versions of JAX are tried with: convolutions, batch statistics, lists of images, all kinds of attention.
EVERYWHERE = {"vit", "simple_vit", "t2t", "cait", "levit", "max_vit", "na_vit", "xcit"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in EVERYWHERE else pytest.mark.slow) for name in holds_for("learns")]
)
def test_the_loss_falls(name):
    case = FIRST[name]
    shape = case.input_shape[0] if case.takes_list else case.input_shape[1:]
    batch, objective = digits(24, *shape), Classify(build(case, num_classes=10))
    optimizer = optax.adam(4e-3)

    @jax.jit
    def start(key, images):
        params, extras = objective.init(key, images)
        return params, extras, optimizer.init(params)

    params, extras, state = start(jax.random.key(0), batch["image"])

    @jax.jit
    def step(params, extras, state, key):
        loss = lambda params: objective.loss(params, extras, batch, {"dropout": key}, train=True)
        (value, (_, moved)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), moved, state, value

    losses = []
    for key in jax.random.split(jax.random.key(1), 16):
        params, extras, state, value = step(params, extras, state, key)
        losses.append(float(value))
    assert losses[0] < 2 * np.log(10)  # no class is preferred much at the start
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
