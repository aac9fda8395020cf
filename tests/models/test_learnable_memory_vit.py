"""Adapters on a frozen ViT: what is trained, and what does not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases.case import BLOCKS, IMAGE
from vit_jax import create_model, list_presets
from vit_jax.models.learnable_memory_vit import memory_mask

TRUNK = create_model("learnable_memory_vit", **IMAGE, **BLOCKS)
IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))


def noise(tree, seed):
    """A tree of the same shapes with random numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), tree)


@pytest.fixture(scope="module")
def trunk_params():
    return noise(jax.eval_shape(TRUNK.init, jax.random.key(0), IMAGES)["params"], 0)


def adapter_of(trunk_params, seed, **kwargs):
    """An adapter of the ViT, with its own parameters."""
    adapter = create_model("learnable_memory_vit:Adapter", vit=TRUNK, **kwargs)
    params = noise(jax.eval_shape(adapter.init, jax.random.key(0), IMAGES)["params"], seed)
    return adapter, {**params, "vit": trunk_params}


def test_mask_of_two_tokens_and_three_memories():
    mask = [[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(memory_mask(2, 3), np.array(mask, bool))


def test_the_trunk_says_what_it_said_before(trunk_params):
    """Adapters for several tasks: each has its own first token, and none changes the ViT's tokens."""
    logits = TRUNK.apply({"params": trunk_params}, IMAGES)
    firsts = []
    for seed, memories in ((1, 3), (2, 10)):
        adapter, params = adapter_of(trunk_params, seed, num_memories_per_layer=memories, num_classes=0)
        tokens = adapter.apply({"params": params}, IMAGES)
        firsts.append(tokens[:, 0])
        trunk_logits = TRUNK.apply({"params": trunk_params}, tokens[:, 1:], method="head")
        np.testing.assert_allclose(trunk_logits, logits, rtol=1e-5, atol=1e-5)
    assert jnp.abs(firsts[0] - firsts[1]).max() > 0.1


def test_only_the_adapter_learns(trunk_params):
    adapter, params = adapter_of(trunk_params, 1)
    gradient = jax.grad(lambda params: adapter.apply({"params": params}, IMAGES)[:, 0].sum())(params)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient.pop("vit")))
    assert gradient.keys() == {"memory_cls_token", "memories_per_layer", "mlp_head"}
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_an_adapter_starts_with_all_of_its_trunk():
    adapter = create_model("learnable_memory_vit:Adapter", vit=TRUNK)
    shapes = lambda model: jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    assert shapes(adapter)["vit"] == shapes(TRUNK)
    assert list_presets("learnable_memory_vit:Adapter") == []


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(vit=create_model("vit/tiny", num_classes=2)), r"vit=.*expected a model made by create_model"),
        (dict(vit=TRUNK, num_memories_per_layer=-1), "num_memories_per_layer=-1: expected at least 0"),
    ],
)
def test_bad_adapters_are_named(kwargs, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        create_model("learnable_memory_vit:Adapter", **kwargs)
