"""EfficientViT beyond parity."""

import jax.numpy as jnp

from tests.states import state_of
from vit_jax import create_model


def test_the_transformer_of_the_preset_has_upstreams_keys():
    state = state_of(create_model("efficient/tiny", num_classes=3), jnp.ones((1, 32, 32, 3)))
    keys = {"norm.weight", "layers.0.0.norm.weight", "layers.0.0.to_out.0.weight", "layers.3.1.net.4.weight"}
    assert {f"transformer.{key}" for key in keys} <= state.keys()
