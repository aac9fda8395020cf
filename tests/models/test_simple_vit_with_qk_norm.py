"""Normalised queries and keys: their original length has no effect."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax.models.simple_vit_with_qk_norm import Attention


def test_attention_does_not_depend_on_the_length_of_queries_and_keys():
    x = jax.random.normal(jax.random.key(0), (2, 7, 24))
    model = Attention(heads=3, dim_head=8)
    params = model.init(jax.random.key(1), x)["params"]
    np.testing.assert_allclose(params["q_norm"]["gamma"], 8**-0.5, rtol=1e-6)  # scores start as cosines
    longer = params["to_qkv"]["kernel"] * jnp.repeat(jnp.array([50.0, 0.02, 1.0]), 24)[None]
    out, longer = (model.apply({"params": p}, x) for p in (params, {**params, "to_qkv": {"kernel": longer}}))
    np.testing.assert_allclose(longer, out, rtol=1e-5, atol=1e-6)


def test_upstreams_head_is_a_norm_whatever_the_classes():
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    for num_classes in (1, 5):
        model = build(FIRST["simple_vit_with_qk_norm"], norm_head=True, num_classes=num_classes)
        features, _ = model.init_with_output(jax.random.key(0), images)
        assert features.shape == (2, 24)
        np.testing.assert_allclose(features.mean(axis=1), 0, atol=1e-6)
        np.testing.assert_allclose(features.std(axis=1), 1, rtol=1e-3)
