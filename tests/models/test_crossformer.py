"""Features of CrossFormer only."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax import create_model


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(image_size=200), "image_size=200: expected sides such as 224"),
        (dict(image_size=(224, 100)), r"image_size=\(224, 100\): expected sides such as"),
        (dict(image_size=0), "image_size=0: expected a positive integer or a pair"),
        (dict(dim=16), "dim=16: expected at least 32"),
        (dict(depth=(1, 1)), r"depth=\(1, 1\): expected one for each of four stages"),
        (dict(local_window_size=0), "local_window_size=0: expected at least 1"),
        (dict(cross_embed_kernel_sizes=((4, 7), (2,), (2,), (2,))), "cross_embed_kernel_sizes=.*all odd or all even"),
        (dict(cross_embed_kernel_sizes=((2, 4), (2,), (2,), (2,))), "cross_embed_kernel_sizes=.*none below its"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model("crossformer", **{"global_window_size": 1, **kwargs})


def test_images_that_windows_do_not_fill_are_named():
    with pytest.raises(ValueError, match=r"images=\(224, 240\): expected sides such as 227 or 448"):
        jax.eval_shape(create_model("crossformer").init, jax.random.key(0), jnp.ones((1, 224, 240, 3)))
