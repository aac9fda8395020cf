"""Registers in MaxViT's windows: their biases, their information, and their number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax.models.max_vit_with_registers import RegisterAttention

CASE = FIRST["max_vit_with_registers"]


def test_positions_by_hand():
    """A window of two by two pixels has nine offsets, so the bias of registers has index nine."""
    attention = RegisterAttention(dim_head=4, window_size=2, dropout=0.0, num_register_tokens=1)
    expected = [[9, 9, 9, 9, 9], [9, 4, 3, 1, 0], [9, 5, 4, 2, 1], [9, 7, 6, 4, 3], [9, 8, 7, 5, 4]]
    np.testing.assert_array_equal(attention.positions(), expected)


def test_registers_see_no_other_image():
    """The mean of registers is over the windows of one image: other images of the batch do not change its logits."""
    model, x = build(CASE), jax.random.normal(jax.random.key(0), CASE.input_shape)
    variables = model.init(jax.random.key(1), x)
    logits = lambda x: np.asarray(model.apply(variables, x)[0])
    np.testing.assert_allclose(logits(x.at[1].multiply(-3.0)), logits(x), rtol=0, atol=1e-6)


def test_there_is_a_register():
    with pytest.raises(ValueError, match="num_register_tokens=0: expected at least 1"):
        build(CASE, num_register_tokens=0)


def test_windows_are_still_checked():
    with pytest.raises(ValueError, match="image_size=20: expected sides such as 16 or 21"):
        build(CASE, image_size=20)
    with pytest.raises(ValueError, match=r"image_size=\(20, 16\): expected sides such as 16 or 21"):
        jax.eval_shape(build(CASE).init, jax.random.key(0), jnp.ones((1, 20, 16, 3)))
