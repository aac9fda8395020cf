"""Random state dicts like those of torch, and assertions for tests of the conversion."""

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

from vit_jax.convert import from_torch, to_torch

RNG = np.random.default_rng(0)
PRECISIONS = [np.float16, ml_dtypes.bfloat16, np.float64]


class Toy(nn.Module):
    """A module with one submodule, `layer`."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(x)


def state_of(model, *inputs, **kwargs) -> dict[str, np.ndarray]:
    """A random state dict like that of the torch counterpart of `model`."""
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs, **kwargs)
    return to_torch(model, jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape, np.float32), variables))


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def refusal(model, state, *inputs) -> str:
    with pytest.raises(ValueError, match=r"^state_dict") as caught:
        from_torch(model, state, *inputs)
    return str(caught.value)
