"""Sampling of tokens in ATS-ViT: which ones, how often, and the output."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases.ats_vit import CASES
from tests.cases.case import build, build_upstream
from vit_jax import create_model
from vit_jax.convert import from_torch
from vit_jax.models.ats_vit import compact, draw, significance

SAMPLED = next(case for case in CASES if case.note == "sampled-one-head")
IMAGES = jax.random.normal(jax.random.key(0), SAMPLED.input_shape)


@functools.partial(jax.jit, static_argnames="train")
def sample(train: bool, seed: int = 0, images=IMAGES):
    """Logits and ids of the row's model with random parameters."""
    model, rng = build(SAMPLED), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    rngs = {"dropout": jax.random.key(seed)} if train else {}
    return model.apply(variables, images, return_sampled_token_ids=True, train=train, rngs=rngs)


def test_quantiles_fall_on_tokens():
    probabilities = jnp.array([[0.1, 0.0, 0.6, 0.3], [0.25, 0.25, 0.25, 0.25]])
    quantiles = jnp.array([[0.05, 0.3, 0.65], [0.0, 0.1, 0.999]])
    np.testing.assert_array_equal(draw(probabilities, quantiles), [[1, 0, 1, 0], [1, 0, 0, 1]])


def test_every_token_is_sampled_as_often_as_it_should_be():
    probabilities = jnp.array([0.5, 0.3, 0.15, 0.04, 0.01])
    images, draws = 20000, 3
    quantiles = jax.random.uniform(jax.random.key(0), (images, draws))
    sampled = draw(jnp.tile(probabilities[None], (images, 1)), quantiles)
    expected = 1 - (1 - probabilities) ** draws
    bound = 4.5 * np.sqrt(expected * (1 - expected) / images)
    assert (np.abs(sampled.mean(0) - expected) < bound).all()


def test_the_model_draws_as_its_first_layer_says():
    """In a batch of equal images, each token is kept as often as the attention of the class token predicts."""
    copies, draws, patches = 4000, 3, 4
    sizes = dict(image_size=8, patch_size=4, dim=8, depth=1, heads=2, dim_head=4, mlp_dim=4, num_classes=2)
    model = create_model("ats_vit", max_tokens_per_depth=(draws,), **sizes)
    images = jnp.tile(jax.random.normal(jax.random.key(0), (1, 8, 8, 3)), (copies, 1, 1, 1))
    params = model.init(jax.random.key(1), images[:1])["params"]
    params["transformer"]["attn_0"]["to_qkv"]["kernel"] *= 3  # makes tokens differ in significance

    def apply(images, train):
        rngs = {"dropout": jax.random.key(2)}
        kwargs = dict(return_sampled_token_ids=True, train=train, rngs=rngs, mutable=["intermediates"])
        return model.apply({"params": params}, images, capture_intermediates=is_projection, **kwargs)

    is_projection = lambda module, method: module.name == "to_qkv"
    _, state = apply(images[:1], False)
    attended = state["intermediates"]["transformer"]["attn_0"]
    attn = attended["attn"][0][0, :, 0, 1:]  # (h, n)
    _, _, values = attended["to_qkv"]["__call__"][0]
    weights = (attn * jnp.linalg.norm(values[0, :, 1:], axis=-1)).sum(0)
    expected = 1 - (1 - weights / weights.sum()) ** draws

    (_, ids), _ = jax.jit(lambda: apply(images, True))()
    share = np.array([(ids == patch).any(1).mean() for patch in range(patches)])
    assert np.ptp(expected) > 0.2
    assert (np.abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / copies)).all()


def test_significance_is_a_distribution_over_what_is_not_masked():
    rng = np.random.default_rng(0)
    attn, values = rng.random((2, 3, 5, 5), np.float32), rng.standard_normal((2, 3, 5, 4), np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    weights = (attn[:, :, 0, 1:] * np.sqrt((values[:, :, 1:] ** 2).sum(-1))).sum(1) * mask[:, 1:]
    expected = weights / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(significance(*map(jnp.asarray, (attn, values, mask))), expected, atol=1e-5)


def test_significance_of_nothing_attended_to_is_even():
    mask = jnp.array([[True, True, True, False]])
    even = significance(jnp.zeros((1, 1, 4, 4)), jnp.ones((1, 1, 4, 2)), mask)
    np.testing.assert_allclose(even, [[0.5, 0.5, 0.0]])


def test_kept_tokens_move_to_the_front_in_order():
    kept = jnp.array([[False, True, False, True, True], [False, False, True, False, False]])
    ids, mask = compact(kept, 3)
    np.testing.assert_array_equal(ids, [[0, 2, 4, 5], [0, 3, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1], [1, 1, 0, 0]])


def test_ids_are_upstreams():
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first, shake

    twin = shake(build_upstream(SAMPLED))
    images = np.array(IMAGES)
    with torch.no_grad():
        for attention, _ in twin.transformer.layers:
            attention.to_qkv.weight.mul_(3)  # makes some tokens be drawn many times
        logits, ids = twin(channels_first(images), return_sampled_token_ids=True)
    model = build(SAMPLED)
    variables = from_torch(model, twin.state_dict(), images)
    ours, our_ids = jax.jit(lambda x: model.apply(variables, x, return_sampled_token_ids=True))(images)
    np.testing.assert_array_equal(our_ids, ids)
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-5)
    assert (ids == -1).any()  # some positions are padded


def test_ids_are_in_order_and_padded_behind():
    for train in (False, True):
        _, ids = sample(train)
        assert ids.shape == (2, 13)
        for row in np.asarray(ids):
            left = row[row >= 0]
            assert len(left) >= 1
            assert (row[: len(left)] == left).all()
            assert (np.diff(left) > 0).all()
            assert left.max() < 16


def test_evaluation_draws_nothing_and_training_draws_anew():
    first, second = (sample(False, seed)[1] for seed in (0, 1))
    np.testing.assert_array_equal(first, second)
    assert len({np.asarray(sample(True, seed)[1]).tobytes() for seed in range(6)}) > 1


def test_images_do_not_depend_on_one_another():
    _, together = sample(False)
    for i in range(2):
        np.testing.assert_array_equal(sample(False, images=IMAGES[i : i + 1])[1][0], together[i])


def test_the_transformer_returns_the_tokens_that_are_left():
    model = build(SAMPLED)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    shape = lambda method, x: jax.eval_shape(functools.partial(model.apply, method=method), variables, x).shape
    left = min(model.max_tokens_per_depth) + 1
    assert shape("transform", jnp.ones((2, 17, model.dim))) == shape("encode", IMAGES) == (2, left, model.dim)


@pytest.mark.parametrize("numbers", [(4,), (4, 5, 3), (4, 4, 0), (), (4, 4, 4, 4)])
def test_bad_numbers_of_tokens_are_named(numbers):
    with pytest.raises(ValueError, match=r"max_tokens_per_depth=\(.*expected as many numbers as depth=3"):
        build(SAMPLED, max_tokens_per_depth=numbers)
