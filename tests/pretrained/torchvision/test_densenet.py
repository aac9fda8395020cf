"""DenseNet: keys of the published files, and maps that halve from block to block."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_models import variables_of
from vit_jax import create_model
from vit_jax.convert import from_torch, to_torch

SMALL = dict(growth_rate=4, block_config=(2, 11), num_init_features=8, bn_size=2, num_classes=3)


def test_keys_of_the_published_files_load():
    model = create_model("densenet121", **SMALL)
    images = jnp.zeros((1, 32, 32, 3))
    now = to_torch(model, variables_of(model, images, {}))
    now = {key: value for key, value in now.items() if not key.endswith("num_batches_tracked")}
    then = {re.sub(r"(denselayer.*)([12])", r"\1.\2", key): value for key, value in now.items()}
    assert "features.denseblock2.denselayer11.norm.1.running_mean" in then
    assert "features.denseblock1.denselayer2.conv.2.weight" in then
    assert "features.transition1.norm.weight" in then
    loaded = to_torch(model, from_torch(model, then, images))
    for key, value in now.items():
        np.testing.assert_array_equal(loaded[key], value)


def test_images_leave_a_pixel_to_the_last_block():
    model = create_model("densenet121")
    assert jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 29, 64, 3)))[0].shape == (1, 1000)
    with pytest.raises(ValueError, match=r"image_size=\(28, 64\): expected sides such as 29"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 64, 3)))
    with pytest.raises(ValueError, match=r"drop_rate=1.5: expected 0 to 1"):
        create_model("densenet121", drop_rate=1.5)


def test_new_features_drop_in_training_alone():
    model = create_model("densenet121", **SMALL, drop_rate=0.5)
    images = jax.device_put(np.random.default_rng(1).standard_normal((2, 32, 32, 3), np.float32))
    variables = variables_of(model, images, {})
    plain = create_model("densenet121", **SMALL)
    program = lambda model: str(jax.make_jaxpr(model.apply)(variables, images))
    assert program(model) == program(plain)

    @jax.jit
    def train(key):
        return model.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    outputs = [train(jax.random.key(i)) for i in range(2)]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
