"""Features of MaxViT only: convolution branches that are dropped sample by sample, and its arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax.layers import relative_positions
from vit_jax.models.max_vit import MBConv

SAMPLES, RATE = 4000, 0.3


def test_convolution_branches_drop_with_their_samples():
    x = jnp.ones((SAMPLES, 1, 1, 2))
    block = MBConv(dim=2, downsample=False, expansion_rate=1, shrinkage_rate=1, dropout=RATE)
    variables = block.init(jax.random.key(0), x)
    variables["params"]["project_norm"]["bias"] = jnp.array([1.0, 2.0])

    def branch(block):
        out = block.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"])
        return np.asarray(out[0] - x)[:, 0, 0]

    whole, dropped = branch(block.clone(dropout=0.0)), branch(block)
    kept = np.any(dropped != 0, axis=1)
    np.testing.assert_allclose(dropped, np.where(kept[:, None], whole / (1 - RATE), 0.0), rtol=1e-5, atol=1e-6)
    assert abs(kept.mean() - (1 - RATE)) < 4 * np.sqrt(RATE * (1 - RATE) / SAMPLES)
    neighbours = np.corrcoef(kept[:-1], kept[1:])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(SAMPLES)


def test_convolution_branches_stay_at_evaluation():
    case = FIRST["max_vit"]
    x = jax.random.normal(jax.random.key(0), case.input_shape)
    models = [build(case, depth=(2,), mbconv_dropout=rate) for rate in (0.0, 1.0)]
    variables = models[0].init(jax.random.key(1), x)
    np.testing.assert_array_equal(*(model.apply(variables, x) for model in models))


def test_relative_positions_by_hand():
    """In a window of two by two pixels, offsets by one row differ by three in their index."""
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(relative_positions(2), expected)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depth=2), "depth=2: expected a tuple"),
        (dict(dim=10), "dim=10: expected a multiple of dim_head=4"),
        (dict(window_size=0), "window_size=0: expected at least 1"),
        (dict(mbconv_dropout=1.5), "mbconv_dropout=1.5: expected 0 to 1"),
        (dict(image_size=20), "image_size=20: expected sides such as 16 or 21"),
        (dict(image_size=224, window_size=7, depth=(1, 1, 1, 1, 1)), "image_size=224: expected sides such as 445"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["max_vit"], **kwargs)


def test_images_that_windows_do_not_tile_are_named():
    with pytest.raises(ValueError, match=r"image_size=\(20, 16\): expected sides such as 16 or 21"):
        jax.eval_shape(build(FIRST["max_vit"]).init, jax.random.key(0), jnp.ones((1, 20, 16, 3)))
