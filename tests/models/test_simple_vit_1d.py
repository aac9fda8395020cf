"""Positions of SimpleViT for series. Its error messages for inputs are tested in test_vit_1d.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build


def test_positions_by_hand():
    """Two frequencies, 1 and 1 / 10000; with an odd width the last feature has no position."""
    positions = build(FIRST["simple_vit_1d"], dim=5).positions(3)
    n = np.arange(3)
    expected = [np.sin(n), np.sin(n / 1e4), np.cos(n), np.cos(n / 1e4), 0 * n]
    np.testing.assert_allclose(positions, np.transpose(expected), rtol=1e-6)


def test_narrow_models_are_named():
    with pytest.raises(ValueError, match="dim=3: expected at least 4, for sine-cosine positions"):
        jax.eval_shape(build(FIRST["simple_vit_1d"], dim=3).init, jax.random.key(0), jnp.ones((1, 20, 3)))
