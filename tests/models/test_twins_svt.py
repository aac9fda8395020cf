"""Features of Twins-SVT only."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax import create_model


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(image_size=200), "image_size=200: expected sides such as 224"),
        (dict(image_size=(224, 100)), r"image_size=\(224, 100\): expected sides such as 224"),
        (dict(image_size=0), "image_size=0: expected a positive integer or a pair"),
        (dict(peg_kernel_size=2), "peg_kernel_size=2: expected an odd number"),
        (dict(s2_emb_dim=0), "s2_emb_dim=0: expected at least 1"),
        (dict(s4_depth=-1), "s4_depth=-1: expected at least 0"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model("twins_svt", num_classes=2, **kwargs)


def test_maps_smaller_than_what_subsamples_them_are_named():
    with pytest.raises(ValueError, match="image_size=32: expected sides such as 256"):
        create_model("twins_svt/tiny", num_classes=2, image_size=32, s4_global_k=8)


def test_images_that_windows_do_not_fill_are_named():
    model = create_model("twins_svt", num_classes=2)
    with pytest.raises(ValueError, match=r"images=\(224, 232\): expected sides such as 224 or 448"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 224, 232, 3)))
