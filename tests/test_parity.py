"""Every model against its upstream twin, with the same weights: values and gradients, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import CASES, build, build_upstream
from vit_jax.convert import from_torch, to_torch

torch = pytest.importorskip("torch")
from tests.upstream import shake  # noqa: E402


def relative_error(ours, theirs) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def channels_first(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1) if x.ndim > 3 else x


@pytest.mark.parametrize("scale", [1.0, 0.1], ids=["", "small"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_upstreams(case, scale):
    theirs, ours = shake(build_upstream(case), scale=scale), build(case)
    rng = np.random.default_rng(1)
    x = rng.standard_normal(case.input_shape, np.float32) * scale
    variables = from_torch(ours, theirs.state_dict(), x)

    expected = theirs(torch.from_numpy(channels_first(x)))
    weights = rng.standard_normal(expected.shape, np.float32)

    def weighted_sum(params, x):
        out = ours.apply({**variables, "params": params}, x)
        return jnp.sum(out * weights), out

    (_, out), grads = jax.jit(jax.value_and_grad(weighted_sum, has_aux=True))(variables["params"], x)
    print("value", relative_error(out, expected.detach().numpy()))
    assert relative_error(out, expected.detach().numpy()) <= 1e-5

    (expected * torch.from_numpy(weights)).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.numel()}
    for key, ours_grad in to_torch(ours, {"params": grads}).items():
        if key in gradients:
            print(key, relative_error(ours_grad, gradients[key].numpy()))
            assert relative_error(ours_grad, gradients[key].numpy()) <= 1e-5, key
