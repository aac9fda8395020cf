"""Registers are added and removed within `encode`, also with extra tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax.convert import from_torch, to_torch


@pytest.mark.parametrize("name", ["simple_vit_with_register_tokens", "simple_uvit"])
def test_what_is_encoded_comes_back_without_registers(name):
    model = build(FIRST[name], num_register_tokens=3)
    images, extra = jax.random.normal(jax.random.key(0), (2, 16, 16, 3)), jnp.ones((2, 24))
    variables = model.init(jax.random.key(1), images)
    encode = lambda extra: model.apply(variables, images, extra, method="encode")
    assert encode(None).shape == (2, 16, 24)
    assert encode(extra).shape == (2, 16 + 2, 24)
    np.testing.assert_allclose(encode(extra)[:, -1], encode(extra)[:, -2], rtol=1e-4)  # the two equal extra tokens
    logits = model.apply(variables, encode(None), method="head")
    np.testing.assert_array_equal(logits, model.apply(variables, images))


@pytest.mark.parametrize(
    "name",
    [
        "simple_vit_with_register_tokens",
        "simple_uvit",
        "simple_vit_with_hyper_connections",
        "simple_vit_with_sparse_gating",
    ],
)
def test_without_registers_there_is_no_parameter(name):
    """Checkpoints cannot hold an empty parameter; upstream stores one, and conversion still round-trips."""
    model, images = build(FIRST[name], num_register_tokens=0), jnp.ones((1, 16, 16, 3))
    variables = model.init(jax.random.key(0), images)
    assert "register_tokens" not in variables["params"]
    assert all(leaf.size for leaf in jax.tree.leaves(variables))
    state = to_torch(model, variables)
    assert state["register_tokens"].shape == (0, 24)
    jax.tree.map(np.testing.assert_array_equal, from_torch(model, state, images), variables)
