"""WWT: invalid arguments, random directions, and the maps that a head computes from masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax import create_model
from vit_jax.convert import from_torch, to_torch
from vit_jax.layers.sigreg import random_directions, sigreg_loss

CASE = FIRST["wwt"]
X = jnp.zeros(CASE.input_shape)


def head(**kwargs):
    return create_model("wwt:AutoencodingHead", image_size=4, patch_size=2, **kwargs)


def test_a_head_carries_slots_to_patches():
    """With two slots, four patches and a saturated mask, a patch gets the features of its slot."""
    features = (jnp.zeros((1, 4, 3)), jnp.array([[[1.0, 2, 3], [4, 5, 6]]]))
    mask = 100 * jnp.array([[[[1.0, 0], [0, 1], [0, 1], [1, 0]]]])
    expected = np.array([[[[1, 2, 3], [4, 5, 6]], [[4, 5, 6], [1, 2, 3]]]])
    np.testing.assert_allclose(head().apply({}, features, [mask], [(0, 1)]), expected, rtol=1e-6)
    channels_first = head(channel_first=True).apply({}, features, [mask], [(0, 1)])
    np.testing.assert_allclose(channels_first, expected.transpose(0, 3, 1, 2), rtol=1e-6)


def test_weights_of_several_heads_go_round():
    heads = tuple(head(pathways=((0, 1),), decoder=create_model("vit:Transformer", **block)) for block in BLOCKS)
    for task_heads in (heads, heads[0]):
        model = build(CASE, task_heads=task_heads)
        variables = jax.eval_shape(model.init, jax.random.key(0), X)
        variables = jax.tree.map(lambda leaf: np.random.default_rng(0).random(leaf.shape, np.float32), variables)
        state = to_torch(model, variables)
        assert "task_heads.0.decoder.layers.0.0.norm.weight" in state
        jax.tree.map(np.testing.assert_array_equal, from_torch(model, state, X), variables)


BLOCKS = [dict(dim=24, depth=depth, heads=2, dim_head=4, mlp_dim=8) for depth in (1, 2)]


def test_directions_are_drawn_in_training_alone():
    model = build(CASE, sigreg_slots=True)
    variables = model.init(jax.random.key(0), X)
    loss = lambda **kwargs: float(model.apply(variables, X, **kwargs)[1])
    drawn = [loss(train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)]
    assert loss() == loss()
    assert drawn[0] == drawn[1] != drawn[2]


def test_directions_cover_the_sphere_evenly():
    """Directions have unit length, and any two of their features are uncorrelated: the bound is six standard errors."""
    directions = np.asarray(random_directions(jax.random.key(0), 8, 20_000))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-5)
    assert np.abs(directions.mean(axis=0)).max() < 6 / (8 * 20_000) ** 0.5
    assert np.abs(directions.T @ directions / 20_000 - np.eye(8) / 8).max() < 6 * (2 / 80 / 20_000) ** 0.5


def test_normal_features_have_the_smallest_loss():
    normal, directions = jax.random.normal(jax.random.key(0), (4, 500, 8)), random_directions(jax.random.key(1), 8)
    losses = [float(sigreg_loss(x, directions)) for x in (normal, 2 * normal, normal + 1, jnp.zeros_like(normal))]
    assert losses[0] < 1e-3 < 10 * losses[0] + 1e-3 < min(losses[1:])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_slots=(3, 3)), r"num_slots=\(3, 3\): expected one or more numbers, in descending order"),
        (dict(num_slots=()), r"num_slots=\(\): expected one or more numbers"),
        (dict(num_slots=0), "num_slots=0: expected at least 1"),
        (
            dict(num_register_slots=(1,)),
            r"num_register_slots=\(1,\): expected one value, or 2, as many as num_slots=\(6, 3\)",
        ),
        (dict(sigreg_slots=(True,) * 3), r"sigreg_slots=.*: expected one value, or 2"),
        (dict(interactions=((0, 1), (0, 1))), r"interactions=.*: expected distinct pairs"),
        (dict(interactions=((1, 0),)), r"interactions=.*: expected distinct pairs \(lower, higher\) of levels 0 to 2"),
        (dict(interactions=((0, 3),)), r"interactions=.*: expected distinct pairs \(lower, higher\) of levels 0 to 2"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(CASE, **kwargs)


def test_bad_pathways_are_named():
    for pathway in ((0, 1, 0), (0, 0), ()):
        with pytest.raises(ValueError, match="expected ascending or descending levels"):
            head(pathways=(pathway,))
    features, masks = (jnp.zeros((1, 4, 3)), jnp.zeros((1, 2, 3))), [jnp.zeros((1, 4, 2))]
    with pytest.raises(ValueError, match="expected only steps of interactions="):
        head(pathways=((2, 0),)).apply({}, (*features, features[1]), masks, [(0, 1)])
    with pytest.raises(ValueError, match="expected a pair with level 0, or pathways"):
        head().apply({}, (features[0], *features), masks, [(1, 2)])
