"""Features of LeViT only: the paper's form, position biases, a fixed image size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax import create_model
from vit_jax.models.levit import distances


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(image_size=40), "image_size=40: expected sides such as 32 or 48"),
        (dict(image_size=(48, 8)), r"image_size=\(48, 8\): expected sides such as 16"),
        (dict(image_size=0), "image_size=0: expected a positive integer or a pair"),
        (dict(heads=(1, 2, 3)), r"heads=\(1, 2, 3\): expected 1 to stages=2 numbers"),
        (dict(depth=()), r"depth=\(\): expected 1 to stages=2 numbers"),
        (dict(dim_key=0), "dim_key=0: expected at least 1"),
        (dict(paper=True, dim=(20, 24)), r"dim=\(20, 24\): expected multiples of dim_key=8"),
        (dict(paper=True, dim=(16, 24), dim_key=5), r"dim=\(16, 24\): expected multiples of dim_key=5"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["levit"], **kwargs)


def test_images_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"images of shape \(1, 64, 64, 3\): expected sides of image_size=48"):
        jax.eval_shape(build(FIRST["levit"]).init, jax.random.key(0), jnp.ones((1, 64, 64, 3)))


def test_distances_by_hand():
    """With stride 2, the queries are the first and third pixel of the first of two rows; there are six keys."""
    np.testing.assert_array_equal(distances(2, 3, 2), [[0, 1, 2, 3, 4, 5], [2, 1, 0, 5, 4, 3]])


@pytest.mark.parametrize(
    ("preset", "millions"), [("128s", "7.8"), ("128", "9.2"), ("192", "10.9"), ("256", "18.9"), ("384", "39.1")]
)
def test_the_papers_form_has_as_many_parameters_as_the_papers_table(preset, millions):
    """With both heads, to the last digit in the table."""
    model = create_model(f"levit/{preset}", num_classes=1000, num_distill_classes=1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert f"{count / 1e6:.1f}" == millions
    assert {f"stem_norm_{i}" for i in range(4)} <= set(variables["batch_stats"])


def test_features_are_alive_at_the_start():
    """Subsampling attention has no residual, so its norm must not start at 0, as those of residual branches do."""
    model, images = build(FIRST["levit"], num_classes=0), jax.random.normal(jax.random.key(0), (2, 48, 48, 3))
    features, variables = jax.jit(model.init_with_output)(jax.random.key(1), images)
    assert features.std() > 0.1
    assert not variables["params"]["attn_0_0"]["to_out"]["norm"]["scale"].any()
