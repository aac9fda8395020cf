"""Positions of SimpleViT for video. Its error messages for inputs are tested in test_vit_3d.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build


def test_positions_by_hand():
    """x, y and then frames, at frequencies 1 and 1 / 10000; the last two features have no position."""
    positions = build(FIRST["simple_vit_3d"], dim=14).positions(2, 3, 4)
    f, y, x = np.mgrid[:2, :3, :4].reshape(3, -1)
    waves = [wave(place / scale) for place in (x, y, f) for wave in (np.sin, np.cos) for scale in (1, 1e4)]
    np.testing.assert_allclose(positions, np.transpose([*waves, 0 * f, 0 * f]), rtol=1e-6)


def test_narrow_models_are_named():
    model = build(FIRST["simple_vit_3d"], dim=11)
    with pytest.raises(ValueError, match="dim=11: expected at least 12, for sine-cosine positions"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 6, 8, 8, 3)))
