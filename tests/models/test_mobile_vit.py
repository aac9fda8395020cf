"""Features of MobileViT only: two meanings of `channels`, and its arguments."""

import jax
import jax.numpy as jnp
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax import create_model

WIDTHS = (4, 4, 6, 6, 8, 8, 7, 7, 5, 5, 9)


def test_several_channels_are_widths():
    sizes = dict(image_size=32, dims=(8, 6, 10), patch_size=1, num_classes=5)
    upstreams = create_model("mobile_vit", channels=list(WIDTHS), **sizes)
    assert upstreams == create_model("mobile_vit", channels=3, widths=WIDTHS, **sizes)
    assert upstreams.clone() == upstreams


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(dims=(8, 6)), r"dims=\(8, 6\): expected three numbers"),
        (dict(depths=(1, -1, 1)), r"depths=\(1, -1, 1\): expected at least 0"),
        (dict(channels=3), "widths=None: expected eleven numbers"),
        (dict(channels=(4, 4, 6, 5, 8, 8, 7, 7, 5, 5, 9)), r"widths=\(4, .*\): expected eleven numbers"),
        (dict(expansion=0.2), "expansion=0.2: expected at least 1 / 4"),
        (dict(kernel_size=4), "kernel_size=4: expected an odd number"),
        (dict(image_size=96, patch_size=2), "image_size=96: expected sides such as 64 or"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["mobile_vit"], **kwargs)


def test_images_that_patches_do_not_tile_are_named():
    model = build(FIRST["mobile_vit"], image_size=64, patch_size=2)
    with pytest.raises(ValueError, match="image_size=32: expected sides such as"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 64, 3)))
