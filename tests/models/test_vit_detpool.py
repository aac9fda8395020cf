"""Masks of ViTDetPool: shapes, the module that computes them, and their effect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.cases.case import BLOCKS, IMAGE
from vit_jax import create_model
from vit_jax.models.vit_detpool import masked_mean

IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
PIXELS = np.zeros((2, 16, 16), bool)
PIXELS[0, :5, 2] = PIXELS[1, 9, 12:] = True  # patches 0 and 4 of the first image, 11 of the second


class Bright(nn.Module):
    """Mask of the pixels that a learned linear map finds bright."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(1, name="fc")(images)[..., 0] > 2


def test_masks_of_pixels_and_patches_agree():
    model = create_model("vit_detpool", **IMAGE, **BLOCKS)
    variables = model.init(jax.random.key(1), IMAGES)
    patches = np.zeros((2, 16), bool)
    patches[0, [0, 4]] = patches[1, 11] = True
    masks = (PIXELS, patches, patches.reshape(2, 4, 4))
    a, b, c = (model.apply(variables, IMAGES, object_mask=jnp.asarray(mask)) for mask in masks)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)
    one = model.apply(variables, IMAGES[1:], object_mask=jnp.asarray(patches[1:]))
    np.testing.assert_allclose(a[1:], one, atol=1e-6)


def test_pixels_outside_of_the_mask_change_nothing():
    model = create_model("vit_detpool", **IMAGE, **BLOCKS)
    variables = model.init(jax.random.key(1), IMAGES)
    apply = lambda images: model.apply(variables, images, object_mask=jnp.asarray(PIXELS))
    slopes = np.asarray(jnp.abs(jax.grad(lambda images: apply(images).sum())(IMAGES)).sum(-1))
    patches = slopes.reshape(2, 4, 4, 4, 4).sum((2, 4)).reshape(2, 16)
    assert [list(np.flatnonzero(row)) for row in patches] == [[0, 4], [11]]


def test_the_mean_of_nothing_is_zero():
    x, mask = jnp.ones((2, 3, 4)), jnp.asarray([[False] * 3, [True, False, True]])
    np.testing.assert_array_equal(masked_mean(x, mask), [[0] * 4, [1] * 4])


def test_a_module_makes_the_mask_and_is_frozen():
    model = create_model("vit_detpool", **IMAGE, **BLOCKS, mask_generator=Bright())
    variables = model.init(jax.random.key(1), IMAGES)
    generator = {"params": variables["params"]["mask_generator"]}
    mask = Bright().apply(generator, IMAGES)
    assert 0 < mask.reshape(2, 4, 4, 4, 4).any((2, 4)).mean() < 1
    plain = create_model("vit_detpool", **IMAGE, **BLOCKS)
    expected = plain.apply(variables, IMAGES, object_mask=mask)
    np.testing.assert_array_equal(model.apply(variables, IMAGES), expected)
    given = model.apply(variables, IMAGES, object_mask=~mask)
    assert jnp.abs(given - expected).max() > 1e-3
    grads = jax.grad(lambda variables: model.apply(variables, IMAGES).sum())(variables)["params"]
    assert not jax.tree.reduce(lambda total, leaf: total + jnp.abs(leaf).sum(), grads["mask_generator"], 0.0)


def test_masks_of_other_shapes_are_named():
    model = create_model("vit_detpool", **IMAGE, **BLOCKS)
    with pytest.raises(ValueError, match=r"object_mask of shape \(2, 8, 8\): expected \(2, 16, 16\), .*\(2, 4, 4\)"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, object_mask=jnp.ones((2, 8, 8), bool)))
