"""Error messages of the models of series for wrong inputs, `simple_vit_1d` included."""

import jax
import jax.numpy as jnp
import pytest

from tests.cases import FIRST
from tests.cases.case import build

SERIES = pytest.mark.parametrize("name", ["vit_1d", "simple_vit_1d"])


@SERIES
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(seq_len=22), "seq_len=22: expected a positive multiple of patch_size=4"),
        (dict(seq_len=0), "seq_len=0: expected a positive multiple of patch_size=4"),
        (dict(patch_size=3), "seq_len=20: expected a positive multiple of patch_size=3"),
        (dict(patch_size=0), "patch_size=0: expected at least 1"),
        (dict(patch_size=(4, 4)), r"patch_size=\(4, 4\): expected int"),
        (dict(image_size=16), "unknown argument of model '.*': 'image_size'"),
        (dict(pool="mean"), "unknown argument of model '.*': 'pool'"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST[name], **kwargs)


@SERIES
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 20, 1), r"series of shape \(2, 20, 1\): expected \(batch, length, channels\) with channels=3"),
        ((2, 3, 20), r"series of shape \(2, 3, 20\): expected"),
        ((20, 3), r"series of shape \(20, 3\): expected"),
        ((2, 4, 5, 3), r"series of shape \(2, 4, 5, 3\): expected"),
        ((2, 18, 3), "seq_len=18: expected a positive multiple of patch_size=4"),
        ((2, 0, 3), "seq_len=0: expected a positive multiple of patch_size=4"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_series_are_named(name, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(build(FIRST[name]).init, jax.random.key(0), jnp.ones(shape))


def test_only_learned_positions_end():
    init = lambda name: jax.eval_shape(build(FIRST[name]).init, jax.random.key(0), jnp.ones((2, 24, 3)))
    with pytest.raises(ValueError, match=r"series of shape .*: expected at most seq_len="):
        init("vit_1d")
    init("simple_vit_1d")
