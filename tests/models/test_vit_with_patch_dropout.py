"""Patches that are kept in training."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import create_model

BATCH, PATCHES, DIM = 500, 8, 8


@pytest.fixture(scope="module")
def embedded():
    """Tokens of random images before the transformer: at evaluation, and in training with a rate of 0.3."""
    blocks = dict(depth=0, heads=1, mlp_dim=1, num_classes=0)
    model = create_model(
        "vit_with_patch_dropout", image_size=(4, 8), patch_size=2, dim=DIM, patch_dropout=0.3, **blocks
    )
    images = jax.random.normal(jax.random.key(0), (BATCH, 4, 8, 3))
    variables = model.init(jax.random.key(1), images)
    embed = lambda train: model.apply(
        variables, images, train=train, rngs={"dropout": jax.random.key(2)}, method="embed"
    )
    return np.asarray(embed(False)), np.asarray(embed(True))


def places(tokens: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Index (b, m) in `among` (b, n, d) of each token (b, m, d), which must be bitwise equal."""
    same = (tokens[:, :, None] == among[:, None]).all(-1)
    assert (same.sum(-1) == 1).all()
    return same.argmax(-1)


def test_patches_keep_their_positions_and_the_class_token_stays(embedded):
    every, left = embedded
    assert every.shape == (BATCH, 1 + PATCHES, DIM)
    assert left.shape == (BATCH, 1 + 5, DIM)  # 5.6, rounded down
    np.testing.assert_array_equal(left[:, 0], every[:, 0])
    kept = places(left[:, 1:], every[:, 1:])
    assert all(len(set(row)) == 5 for row in kept)


def test_every_patch_and_every_pair_is_left_equally_often(embedded):
    every, left = embedded
    kept = np.zeros((BATCH, PATCHES))
    np.put_along_axis(kept, places(left[:, 1:], every[:, 1:]), 1, axis=1)
    together = kept.T @ kept / BATCH
    for share, expected in ((np.diag(together), 5 / 8), (together[np.triu_indices(8, 1)], 5 / 8 * 4 / 7)):
        assert np.abs(share - expected).max() < 4.5 * math.sqrt(expected * (1 - expected) / BATCH)


def test_a_high_rate_leaves_one_patch():
    blocks = dict(depth=1, heads=1, mlp_dim=4, num_classes=0, dim_head=4)
    model = create_model("vit_with_patch_dropout", image_size=4, patch_size=2, dim=8, patch_dropout=0.99, **blocks)
    images = jnp.ones((1, 4, 4, 3))
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    out, _ = jax.eval_shape(lambda: model.init_with_output(rngs, images, train=True))
    assert out.shape == (1, 2, 8)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_bad_rates_are_named(rate):
    with pytest.raises(ValueError, match=f"patch_dropout={rate}: expected at least 0 and below 1"):
        create_model("vit_with_patch_dropout/tiny", num_classes=2, patch_dropout=rate)
