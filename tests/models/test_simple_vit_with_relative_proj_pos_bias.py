"""Relative position biases, their reach, and invalid arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax.models.simple_vit_with_relative_proj_pos_bias import RelativeProjPosBias


def test_the_bias_is_a_curve_over_distance_within_reach():
    """With all weights equal to 1, a bias is the sum of the curves at the distances in rows and columns."""
    grid, max_dist = (3, 4), 2
    bias = RelativeProjPosBias(heads=1, num_distance_basis=2, max_dist=max_dist)
    banks = np.arange(12.0, dtype=np.float32).reshape(2, 2, 3)
    ones = {"kernel": jnp.zeros((5, 4)), "bias": jnp.ones(4)}
    params = {"to_distance_weights": ones, "distance_banks": jnp.asarray(banks)}
    out = np.asarray(bias.apply({"params": params}, jnp.ones((1, 12, 5)), grid))[0, 0]
    curves = banks.sum(axis=1)
    for i, (row, column) in enumerate(np.ndindex(grid)):
        for j, (key_row, key_column) in enumerate(np.ndindex(grid)):
            rows, columns = row - key_row, column - key_column
            near = max(abs(rows), abs(columns)) < max_dist
            assert out[i, j] == (curves[0, rows + 1] + curves[1, columns + 1] if near else 0)


@pytest.mark.parametrize("argument", ["num_distance_basis", "max_dist"])
def test_bad_counts_are_named(argument):
    with pytest.raises(ValueError, match=f"{argument}=0: expected at least 1"):
        build(FIRST["simple_vit_with_relative_proj_pos_bias"], **{argument: 0})


def test_another_image_gets_its_own_grid():
    model = build(FIRST["simple_vit_with_relative_proj_pos_bias"])
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 16, 16, 3)))
    assert jax.eval_shape(model.apply, variables, jnp.ones((1, 8, 20, 3))).shape == (1, 5)
