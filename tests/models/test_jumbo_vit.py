"""Widths of JumboViT's hidden layers with and without `multiply_widths`, and invalid arguments."""

import jax
import jax.numpy as jnp
import pytest

from tests.cases import FIRST
from tests.cases.case import build


@pytest.mark.parametrize(("multiply", "mlp_dim", "jumbo_dim"), [(True, 3 * 24, 48 * 96), (False, 3, 96)])
def test_hidden_widths(multiply, mlp_dim, jumbo_dim):
    model = build(FIRST["jumbo_vit"], mlp_dim=3, jumbo_ff_mult=2, multiply_widths=multiply)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 16, 16, 3)))["params"]["transformer"]
    assert params["ff_0"]["fc1"]["kernel"].shape == (24, mlp_dim)
    assert params["jumbo_ff"]["fc1"]["kernel"].shape == (48, jumbo_dim)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_jumbo_cls=0), "num_jumbo_cls=0: expected at least 1"),
        (dict(jumbo_cls_k=0), "jumbo_cls_k=0: expected at least 1"),
        (dict(jumbo_ff_mult=0), "jumbo_ff_mult=0: expected more than 0"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["jumbo_vit"], **kwargs)
