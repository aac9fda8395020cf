"""The errors of what is computed differently in bfloat16, or on a TPU."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.layers import PatchEmbed, attention_scores, gelu, standardize
from vit_jax.layers.attention_forms import attention
from vit_jax.layers.execution import execution
from vit_jax.layers.softmax import softmax

BF16 = jnp.bfloat16
wide = lambda x: np.asarray(x, np.float32)


@pytest.fixture
def noise():
    """Normal numbers, the same whichever tests run before."""
    rng = np.random.default_rng(0)
    return lambda *shape, mean=0.0: np.asarray(rng.normal(mean, 1.0, shape), np.float32).astype(BF16)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_norms_in_one_pass_lose_less_than_the_rounding_of_their_input(mean, noise):
    x = noise(64, 384, mean=mean)
    exact = wide(x).astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    assert np.abs(wide(standardize(x, 1e-5)) - exact).max() < 1e-4 * np.abs(exact).max()


def test_gelu_differs_by_at_most_5e_4_beside_rounding():
    x = np.linspace(-6, 6, 4001, dtype=np.float32).astype(BF16)
    with execution(platform="tpu"):
        ours = wide(jax.jit(gelu)(x))
    exact = wide(jax.nn.gelu(wide(x), approximate=False))
    rounding = 2**-8 * np.abs(exact)
    assert (np.abs(ours - exact) - rounding).max() < 5e-4


def test_scores_stay_in_float32(noise):
    q, k = noise(2, 3, 5, 8), noise(2, 3, 7, 8)
    with execution(platform="tpu"):
        scores = jax.jit(attention_scores)(q, k, 0.3)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, 0.3 * np.einsum("bhid,bhjd->bhij", wide(q), wide(k)), rtol=1e-5, atol=1e-5)
    assert jax.jit(attention_scores)(q, k, 0.3).dtype == BF16


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_whose_scores_take_too_much_memory(heads, noise, monkeypatch):
    """Two heads are too many here: their map is stored, in bfloat16, and loses no more than on other devices."""
    monkeypatch.setattr(importlib.import_module("vit_jax.layers.attention_scores"), "WIDE_BYTES", 4 * 3 * 130 * 130)
    q, k, v = (noise(6, heads, 130, 8) for _ in range(3))
    batch = NamedSharding(Mesh(np.array(jax.devices()[:2]), "data"), PartitionSpec("data"))

    def results(*arrays):
        def loss(arrays):
            out = attention(*arrays, 0.3, None, None).astype(jnp.float32)
            return jnp.vdot(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)), out.ravel()), out

        return jax.tree.map(wide, jax.jit(jax.grad(loss, has_aux=True))(arrays))

    exact, plain = results(*map(wide, (q, k, v))), results(q, k, v)
    with execution(platform="tpu", batch=batch):
        ours = results(q, k, v)
        jaxpr = str(jax.make_jaxpr(lambda *arrays: attention(*arrays, 0.3, None, None))(q, k, v))
    assert ("bf16[6,2,130,8] = mul" in jaxpr) == (heads == 2)  # queries by the scale, which are fewer than products
    assert ("preferred_element_type=float32" in jaxpr) == ("prevent_cse" in jaxpr) == (heads == 1)
    for values, rounded, expected in zip(*map(jax.tree.leaves, (ours, plain, exact)), strict=True):
        error, usual = (np.abs(found - expected).max() / np.abs(expected).max() for found in (values, rounded))
        assert error < max(0.01, 2 * usual)


def test_weights_of_values_add_up_to_one(noise):
    """Exponentials are rounded, but not their sum, which would scale all weights of a query."""
    with execution(platform="tpu"):
        attn = jax.jit(softmax)(noise(64, 512))
    assert attn.dtype == BF16
    np.testing.assert_allclose(wide(attn).sum(axis=-1), 1, atol=5e-4)


def test_patches_by_a_convolution(noise):
    """Values and gradients lose no more than in the plain form, also for patches that are constant or nearly so."""
    images = wide(noise(2, 8, 12, 3))
    images[0, :4, :4] = 2.1
    images[1, 4:, :4] = 1.3 + 0.01 * images[1, 4:, :4]
    images = jnp.asarray(images, BF16)
    embed = PatchEmbed((2, 4), 16)
    to_float32 = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
    shapes = jax.eval_shape(embed.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.asarray(noise(*leaf.shape, mean=0.5)), shapes)

    def results(variables, images):
        def loss(variables, images):
            tokens = to_float32(embed.apply(variables, images))
            return jnp.vdot(jnp.cos(jnp.arange(tokens.size, dtype=jnp.float32)), tokens.ravel()), tokens

        return to_float32(jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables, images))

    exact, plain = results(to_float32(variables), to_float32(images)), results(variables, images)
    with execution(platform="tpu"):
        ours = results(variables, images)
        assert "conv_general_dilated" in str(jax.make_jaxpr(embed.apply)(variables, images))
        assert jax.eval_shape(embed.apply, variables, images[:0]).shape == (0, 12, 16)
    for values, rounded, expected in zip(*map(jax.tree.leaves, (ours, plain, exact)), strict=True):
        error, usual = (np.abs(found - expected).max() / np.abs(expected).max() for found in (values, rounded))
        assert error < max(0.01, 2 * usual)
