"""The auxiliary loss of ViTWithDecorrelation: its value, its sample, and when it is computed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases.case import BLOCKS, IMAGE
from vit_jax import create_model
from vit_jax.models.vit_with_decorr import decorrelation_loss, sample_tokens

IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))


def test_loss_is_of_products_of_different_features():
    tokens = jnp.asarray([[[[1.0, 2.0], [3.0, -1.0]]]])  # products: (1 * 2 + 3 * -1) / 2, twice, over two pairs
    assert decorrelation_loss(tokens, None, False) == pytest.approx(0.25)
    centred = jnp.asarray([[[[-1.0, 1.5], [1.0, -1.5]]]])
    assert decorrelation_loss(tokens, None, True) == pytest.approx(float(decorrelation_loss(centred, None, False)))
    uncorrelated = jnp.asarray([[[[1.0, 2.0], [1.0, -2.0]]]])
    assert decorrelation_loss(uncorrelated, None, False) == 0


def test_the_loss_comes_when_training_or_when_asked_for():
    model = create_model("vit_with_decorr", **IMAGE, **BLOCKS)
    variables = model.init(jax.random.key(0), IMAGES)
    loss = lambda model=model, **kwargs: float(model.apply(variables, IMAGES, **kwargs)[1])
    assert loss() == loss(train=True, return_decorr_aux_loss=False) == 0
    assert loss(train=True) == loss(return_decorr_aux_loss=True) > 0
    sampled = create_model("vit_with_decorr", **IMAGE, **BLOCKS, decorr_sample_frac=0.5)
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    a, b, c = (loss(sampled, train=True, rngs={"dropout": key}) for key in keys)
    assert a == b != c
    assert loss(sampled) == 0  # no rng, as nothing is drawn


def test_samples_are_even_and_without_replacement():
    tokens = jnp.broadcast_to(jnp.arange(9.0).reshape(1, 1, 9, 1), (5, 400, 9, 1))
    sample = np.asarray(sample_tokens(jax.random.key(0), tokens, 0.5))[..., 0]
    assert sample.shape == (5, 400, 4)
    assert all(len(set(row)) == 4 for row in sample.reshape(-1, 4))
    share = 4 / 9
    bound = 4 * math.sqrt(share * (1 - share) / 2000)
    assert np.abs(np.bincount(sample.astype(int).ravel(), minlength=9) / 2000 - share).max() < bound
    both = (sample == 0).any(-1) & (sample == 1).any(-1)
    pairs = 4 / 9 * 3 / 8
    assert abs(both.mean() - pairs) < 4 * math.sqrt(pairs * (1 - pairs) / 2000)
    alike = (np.sort(sample[0]) == np.sort(sample[1])).all(-1).mean()  # of two layers: probability 1 in 126
    assert alike < 1 / 126 + 4 * math.sqrt(1 / 126 / 400)
    assert sample_tokens(jax.random.key(0), tokens, 0.01).shape[2] == 2


def test_subspaces_are_orthogonal_and_are_not_learned():
    kwargs = dict(decorr_use_subspace=True, decorr_dim_subspace=6, decorr_num_subspaces=2)
    variables = create_model("vit_with_decorr", **IMAGE, **BLOCKS, **kwargs).init(jax.random.key(0), IMAGES)
    a, b = variables["batch_stats"]["decorr_proj"]
    np.testing.assert_allclose(a.T @ a, np.eye(6), atol=1e-6)
    np.testing.assert_allclose(b.T @ b, np.eye(6), atol=1e-6)
    assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(decorr_sample_frac=1.5), "decorr_sample_frac=1.5: expected 0 to 1"),
        (
            dict(decorr_use_subspace=True, decorr_dim_subspace=24),
            "decorr_dim_subspace=24: expected at least 1 and below dim=24",
        ),
        (dict(decorr_num_subspaces=0), "decorr_num_subspaces=0: expected at least 1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model("vit_with_decorr", **IMAGE, **BLOCKS, **kwargs)
