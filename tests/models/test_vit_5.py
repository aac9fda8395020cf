"""Features of ViT-5 only: rotations, registers, and sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases.case import BLOCKS, IMAGE, OBLONG
from vit_jax import create_model
from vit_jax.models.vit_5 import rotate, rotations


def test_rotated_products_depend_on_distances_alone():
    """The product of a query and a key two rows and one column apart does not depend on their places."""
    q, k = (jnp.broadcast_to(row, (1, 1, 1 + 3 + 30, 8)) for row in jax.random.normal(jax.random.key(0), (2, 8)))
    sin_cos = jnp.asarray(rotations(3, 5, 6, 8))
    products = jnp.einsum("bhid,bhjd->ij", rotate(q, sin_cos), rotate(k, sin_cos))
    patches = products[4:, 4:].reshape(5, 6, 5, 6)
    values = [patches[row + 2, column, row, column + 1] for row in range(3) for column in range(5)]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    assert abs(patches[0, 0, 1, 0] - patches[0, 0, 0, 1]) > 1e-3
    np.testing.assert_array_equal(rotate(q, sin_cos)[:, :, 0], q[:, :, 0])


def test_a_smaller_image_gets_its_own_grid():
    model = create_model("vit_5", **IMAGE, **BLOCKS)
    variables = model.init(jax.random.key(0), jnp.ones((1, 16, 16, 3)))
    assert model.apply(variables, jnp.ones((1, 8, 12, 3))).shape == (1, 5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(dim_head=6), "dim_head=6: expected a multiple of 4"),
        (dict(num_registers=-1), "num_registers=-1: expected at least 0"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model("vit_5", **IMAGE | BLOCKS | OBLONG | kwargs)
