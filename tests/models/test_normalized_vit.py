"""Tokens of nViT have unit length; normalised weights equal upstream's and do not change the output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from vit_jax.convert import from_torch, to_torch
from vit_jax.models.normalized_vit import normalize_weights

CASE = FIRST["normalized_vit"]


def test_tokens_have_length_one():
    model, x = build(CASE, num_classes=0), jax.random.normal(jax.random.key(0), CASE.input_shape)
    tokens, _ = model.init_with_output(jax.random.key(1), x)
    np.testing.assert_allclose(jnp.linalg.norm(tokens, axis=-1), 1, atol=1e-6)


def test_normalized_weights_are_upstreams_and_change_nothing():
    pytest.importorskip("torch")
    from tests.upstream import shake

    model, twin = build(CASE), shake(build_upstream(CASE))
    x = jax.random.normal(jax.random.key(0), CASE.input_shape)
    variables = from_torch(model, twin.state_dict(), x)
    normalized = {"params": normalize_weights(variables["params"])}
    twin.norm_weights_()
    for name, value in to_torch(model, normalized).items():
        np.testing.assert_allclose(value, twin.state_dict()[name], atol=1e-6, err_msg=name)
    np.testing.assert_allclose(model.apply(normalized, x), model.apply(variables, x), atol=1e-5)


def test_a_hidden_feature_is_left():
    with pytest.raises(ValueError, match="mlp_dim=1: expected at least 2"):
        build(CASE, mlp_dim=1)
