"""Updates are orthogonal, in bfloat16 too, and options are checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax.models.simple_vit_orthog_residual_update import OrthogonalUpdate

CASE = FIRST["simple_vit_orthog_residual_update"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_what_is_added_is_orthogonal(dtype, tolerance):
    x, output = jax.random.normal(jax.random.key(0), (2, 4, 5, 24), dtype)
    added = np.asarray(OrthogonalUpdate(learned=False).apply({}, x, output) - x, np.float64)
    x, output = np.asarray(x, np.float64), np.asarray(output, np.float64)
    cosine = (added * x).sum(-1) / np.linalg.norm(added, axis=-1) / np.linalg.norm(x, axis=-1)
    assert np.abs(cosine).max() < tolerance
    factor = (x * output).sum(-1, keepdims=True) / (x * x).sum(-1, keepdims=True)
    np.testing.assert_allclose(added, output - factor * x, atol=4 * tolerance)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("options", [dict(learnt=True), True])
def test_unknown_options_are_named(options):
    with pytest.raises(ValueError, match=r"orthog_residual_update_kwargs=.*: expected a dict of 'learned' and"):
        build(CASE, orthog_residual_update_kwargs=options)
