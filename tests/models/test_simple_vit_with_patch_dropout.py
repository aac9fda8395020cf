"""Patches dropped in training: their number, with equal probability, independently for every image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build

CASE = FIRST["simple_vit_with_patch_dropout"]
IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32))


def kept_patches(rate: float, draws: int) -> np.ndarray:
    """Whether each of 16 patches is among the tokens: (draws, images, patches)."""
    model = build(CASE, depth=0, num_classes=0, patch_dropout=rate)  # without blocks a token depends only on its patch
    variables = model.init(jax.random.key(0), IMAGES)
    patches = model.apply(variables, IMAGES)

    def draw(key):
        tokens = model.apply(variables, IMAGES, train=True, rngs={"dropout": key})
        return jnp.abs(tokens[:, :, None] - patches[:, None]).max(axis=-1) < 1e-5

    same = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), draws)))
    assert (same.sum(axis=3) == 1).all()  # every token is one patch with its position,
    assert (same.sum(axis=2) <= 1).all()  # and no patch occurs twice
    return same.any(axis=2)


def test_patches_are_a_uniform_draw_without_replacement():
    draws, count, kept = 3000, 16, 11  # int(16 * 0.7)
    drawn = kept_patches(0.3, draws)
    assert (drawn.sum(axis=2) == kept).all()

    def assert_share(events: np.ndarray, share: float):
        assert np.abs(events.mean(axis=0) - share).max() < 4.5 * np.sqrt(share * (1 - share) / draws)

    first, second = drawn[:, 0], drawn[:, 1]
    assert_share(first, kept / count)
    assert_share(second, kept / count)
    assert_share(first & np.roll(first, 1, axis=1), kept * (kept - 1) / (count * (count - 1)))
    assert_share(first & second, (kept / count) ** 2)


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 16), (0.5, 8), (0.99, 1)])
def test_so_many_patches_are_left(rate, kept):
    assert (kept_patches(rate, 2).sum(axis=2) == kept).all()


def test_extra_tokens_are_never_dropped():
    model, extra = build(CASE, depth=0), jnp.ones((2, 24)) * jnp.arange(24)[None]
    encode = lambda train: model.init_with_output(
        {"params": jax.random.key(0), "dropout": jax.random.key(1)}, IMAGES, extra, train=train, method="encode"
    )[0]
    assert encode(True).shape == (2, 8 + 2, 24)
    np.testing.assert_array_equal(encode(True)[:, -2:], encode(False)[:, -2:])


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_bad_rates_are_named(rate):
    with pytest.raises(ValueError, match=rf"patch_dropout={rate}: expected at least 0 and less than 1"):
        build(CASE, patch_dropout=rate)
