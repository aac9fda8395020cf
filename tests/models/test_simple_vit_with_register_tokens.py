"""Registers come and go inside `encode`, whatever else is encoded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build


@pytest.mark.parametrize("name", ["simple_vit_with_register_tokens", "simple_uvit"])
def test_what_is_encoded_comes_back_without_registers(name):
    model = build(FIRST[name], num_register_tokens=3)
    images, extra = jax.random.normal(jax.random.key(0), (2, 16, 16, 3)), jnp.ones((2, 24))
    variables = model.init(jax.random.key(1), images)
    encode = lambda extra: model.apply(variables, images, extra, method="encode")
    assert encode(None).shape == (2, 16, 24)
    assert encode(extra).shape == (2, 16 + 2, 24)
    np.testing.assert_allclose(encode(extra)[:, -1], encode(extra)[:, -2], rtol=1e-4)  # the two that were alike
    logits = model.apply(variables, encode(None), method="head")
    np.testing.assert_array_equal(logits, model.apply(variables, images))
