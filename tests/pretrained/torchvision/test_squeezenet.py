"""SqueezeNet: its versions, and images that are too small for its pools."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax.pretrained.torchvision.squeezenet import SqueezeNet


def test_other_versions_are_refused():
    with pytest.raises(ValueError, match="version='1_2': expected one of '1_0', '1_1'"):
        SqueezeNet("1_2")


@pytest.mark.parametrize(("version", "side"), [("1_0", 21), ("1_1", 17)])  # torchvision's `min_size` of the weights
def test_the_smallest_image_leaves_one_pixel(version, side):
    model = SqueezeNet(version, num_classes=0)
    features = lambda side: jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((1, side, 40, 3)))[0]
    assert features(side).shape == (1, 512)
    with pytest.raises(ValueError, match=rf"image_size=\({side - 1}, 40\): expected sides such as {side}"):
        features(side - 1)
