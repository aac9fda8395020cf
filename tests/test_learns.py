"""Every classifier learns: its loss on a few digits falls within a few steps."""

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.cases import FIRST, holds_for
from tests.cases.case import build
from tests.initial import initial
from vit_jax.objectives.classify import Classify


def digits(count: int, height: int, width: int, channels: int) -> dict[str, jax.Array]:
    """The first digits as a batch of images of this shape."""
    scans, labels = load_digits(return_X_y=True)
    enlarge = lambda scan: np.asarray(Image.fromarray(scan.reshape(8, 8).astype(np.float32)).resize((width, height)))
    images = np.stack([enlarge(scan) for scan in scans[:count]]) / 8 - 1
    images = np.repeat(images[..., None], channels, axis=-1).astype(np.float32)
    return jax.device_put({"image": images, "target": np.eye(10, dtype=np.float32)[labels[:count]]})


# Models to test with every version of JAX: convolutions, batch statistics, lists of images, all kinds of attention. The
# gradients of all models equal upstream's (tests/test_parity.py), so the others learn on request.
EVERYWHERE = {"vit", "simple_vit", "t2t", "cait", "levit", "max_vit", "na_vit", "xcit"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in EVERYWHERE else pytest.mark.exhaustive) for name in holds_for("learns")],
)
def test_the_loss_falls(name):
    case = FIRST[name]
    shape = case.input_shape[0] if case.takes_list else case.input_shape[1:]
    batch, objective = digits(12, *shape), Classify(build(case, num_classes=10))
    params, extras = jax.device_get(initial(objective.init, jax.random.key(0), batch["image"]))

    @jax.jit
    def gradients(params, extras, key):
        loss = lambda params: objective.loss(params, extras, batch, {"dropout": key}, train=True)
        return jax.value_and_grad(loss, has_aux=True)(params)

    losses, first, second = [], *(jax.tree.map(np.zeros_like, params) for _ in range(2))
    for step, key in enumerate(jax.random.split(jax.random.key(1), 16), start=1):
        (value, (_, extras)), gradient = jax.device_get(gradients(params, extras, key))
        losses.append(float(value))
        # Adam, not jitted, as its compilation takes several times longer than the gradient's.
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradient)
        rate = np.float32(4e-3 * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step))
        params = jax.tree.map(lambda p, m, v: p - rate * m / (np.sqrt(v) + 1e-8), params, first, second)  # noqa: B023
    assert losses[0] < 2 * np.log(10)  # no class is preferred much at the start
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
