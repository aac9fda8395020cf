"""Features of RegionViT only."""

import jax
import jax.numpy as jnp
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from tests.test_models import equations
from vit_jax import create_model


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(image_size=200), "image_size=200: expected sides such as 112 or 224"),
        (dict(image_size=(224, 300)), r"image_size=\(224, 300\): expected sides such as 224 or 448"),
        (dict(image_size=0), "image_size=0: expected a positive integer or a pair"),
        (dict(image_size=224, local_patch_size=8), "image_size=224: expected sides such as none: no size fits"),
        (dict(dim=(8, 8)), r"dim=\(8, 8\): expected one number, or 4, one for each stage"),
        (dict(window_size=0), "window_size=0: expected at least 1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model("regionvit", **kwargs)


def test_images_that_regions_do_not_fill_are_named():
    with pytest.raises(ValueError, match=r"images=\(224, 84\): expected sides such as 56 or 112"):
        jax.eval_shape(create_model("regionvit").init, jax.random.key(0), jnp.ones((1, 224, 84, 3)))


def test_attention_drops_twice_in_a_block():
    """Dropout acts on maps and outputs, among regions and within them."""
    model, x = build(FIRST["regionvit"], attn_dropout=0.5), jnp.ones((1, 16, 16, 3))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(model.init, jax.random.key(0), x))
    apply = lambda: model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})
    draws = [e for e in equations(jax.make_jaxpr(apply)().jaxpr) if e.primitive.name == "random_bits"]
    assert len(draws) == 4 * sum(model.depth)
