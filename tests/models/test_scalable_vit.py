"""Features of ScalableViT only: arguments for each stage, windows that tile, reductions that leave a pixel."""

import jax
import jax.numpy as jnp
import pytest

from tests.cases import FIRST
from tests.cases.case import build


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depth=2), "depth=2: expected a tuple"),
        (dict(depth=(1, 0)), r"depth=\(1, 0\): expected at least 1"),
        (dict(heads=(1, 2, 4)), r"heads=\(1, 2, 4\): expected one number, or 2"),
        (dict(reduction_factor=(1, 0)), r"reduction_factor=\(1, 0\): expected at least 1"),
        (dict(image_size=24), "image_size=24: expected sides such as 16 or 29"),
        (dict(image_size=16, reduction_factor=8), "image_size=16: expected at least 57, for reduction_factor=8"),
        (dict(ff_expansion_factor=0), "ff_expansion_factor=0: expected at least 1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["scalable_vit"], **kwargs)


def test_images_that_windows_do_not_tile_are_named():
    with pytest.raises(ValueError, match=r"image_size=\(16, 24\): expected sides such as 16 or 29"):
        jax.eval_shape(build(FIRST["scalable_vit"]).init, jax.random.key(0), jnp.ones((1, 16, 24, 3)))
