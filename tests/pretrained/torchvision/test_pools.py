"""Pools against torch's."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.pretrained.torchvision.pools import adaptive_avg_pool, max_pool_ceil

torch = pytest.importorskip("torch")
from tests.upstream import channels_first  # noqa: E402


def assert_equal(pool, theirs, sides):
    # Values are negative, so that padding with zeros would change a maximum.
    x = np.random.default_rng(0).standard_normal((2, *sides, 3), np.float32) - 9
    np.testing.assert_allclose(pool(jnp.asarray(x)), theirs(channels_first(x)).permute(0, 2, 3, 1), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 6, 7])
@pytest.mark.parametrize("sides", [(7, 7), (14, 7), (5, 6), (1, 9), (13, 20)])
def test_adaptive_means_equal_torchs(size, sides):
    assert_equal(lambda x: adaptive_avg_pool(x, size), torch.nn.AdaptiveAvgPool2d(size), sides)


def test_an_empty_map_has_no_means():
    with pytest.raises(ValueError, match=r"map of shape \(2, 0, 3, 4\): expected at least one pixel"):
        adaptive_avg_pool(jnp.zeros((2, 0, 3, 4)), 7)


@pytest.mark.parametrize("sides", [(3, 4), (5, 6), (7, 8), (9, 10)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 1), (3, 3)])
def test_maxima_of_cut_off_windows_equal_torchs(kernel, stride, sides):
    theirs = torch.nn.MaxPool2d(kernel, stride, ceil_mode=True)
    assert_equal(lambda x: max_pool_ceil(x, kernel, stride), theirs, sides)
