"""Hyper-connections at initialisation, and invalid arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax import create_model


def test_they_begin_as_plain_residuals():
    """All streams are equal, and the last norm removes the factor of their sum: the output is SimpleViT's."""
    plain = create_model("simple_vit/tiny", num_classes=10)
    model = create_model("simple_vit_with_hyper_connections/tiny", num_classes=10, num_register_tokens=0)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    params = model.init(jax.random.key(1), images)["params"]
    blocks = {name: value for name, value in params["transformer"].items() if "connection" not in name}
    shared = {**params, "transformer": blocks}
    expected = plain.apply({"params": shared}, images)
    np.testing.assert_allclose(model.apply({"params": params}, images), expected, atol=1e-5)


def test_layers_begin_with_another_stream():
    """Layer i reads stream i of e, cyclically, and passes on all of them."""
    model = build(FIRST["simple_vit_with_hyper_connections"], depth=4)
    params = model.init(jax.random.key(0), jnp.ones((1, 16, 16, 3)))["params"]["transformer"]
    for i in range(4):
        for branch in ("attn", "ff"):
            alpha = np.asarray(params[f"{branch}_connection_{i}"]["static_alpha"])
            assert alpha[:, 0].tolist() == np.eye(3)[i % 3].tolist()
            np.testing.assert_array_equal(alpha[:, 1:], np.eye(3))


@pytest.mark.parametrize(("argument", "value"), [("num_residual_streams", 0), ("num_register_tokens", -1)])
def test_bad_counts_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value}: expected at least"):
        build(FIRST["simple_vit_with_hyper_connections"], **{argument: value})
