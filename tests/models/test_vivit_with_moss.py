"""ViViT with MOSS: videos in pieces, causality, the frames that MOSS compares, and invalid arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax import create_model
from vit_jax.layers.moss import self_similarity

CASE = FIRST["vivit_with_moss"]
RNG = np.random.default_rng(0)
VIDEO = jax.device_put(RNG.standard_normal((2, 10, 8, 8, 3), np.float32))
READS = dict(pool="cls", cls_reads_frames=True)
FEATURES = jax.device_put(RNG.standard_normal((2, 6, 3, 4, 12), np.float32))


def noise(model, x):
    """Random variables, without compiling the model's init."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(1), x)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), shapes)


def built(**kwargs):
    """A causal model for five frames of patches, and its variables."""
    small = dict(frames=10, spatial_depth=1, temporal_depth=2, moss_local_height=1)
    model = build(CASE, **small | kwargs)
    return model, noise(model, VIDEO)


def stepped(model, variables, video, lengths):
    """Outputs of the steps for pieces of these lengths, and the last state."""
    outputs, state, start = [], {}, 0
    step = jax.jit(functools.partial(model.apply, method="step", mutable=["cache"]))
    for length in lengths:
        out, state = step({**variables, **state}, video[:, start : start + length])
        outputs.append(out)
        start += length
    return outputs, state


@pytest.mark.parametrize(
    ("kwargs", "lengths"),
    [({}, (2, 6, 2)), (READS, (4, 6)), (dict(pool="cls"), (6, 4))],
    ids=["mean", "class-reads", "class-first"],
)
def test_steps_give_the_tokens_of_each_frame(kwargs, lengths):
    model, variables = built(num_classes=0, **kwargs)
    classes = int("pool" in kwargs)
    whole = jax.jit(model.apply)(variables, VIDEO)
    outputs, state = stepped(model, variables, VIDEO, lengths)
    assert state["cache"]["seen"] == 5
    frames = jnp.concatenate([out[:, classes:] for out in outputs], axis=1)
    np.testing.assert_allclose(frames, whole[:, classes:], atol=2e-5)
    np.testing.assert_allclose(outputs[-1][:, :classes], whole[:, :classes], atol=2e-5)


@pytest.mark.parametrize("kwargs", [{}, READS | dict(heads=1, dim_head=24)], ids=["mean", "class-reads-one-head"])
def test_steps_give_the_logits_of_all_frames_so_far(kwargs):
    """One compilation serves all steps: the cache has the same shapes throughout, and is zero at first."""
    model, variables = built(**kwargs)
    frames = VIDEO.reshape(2, 5, 2, 8, 8, 3).swapaxes(0, 1)
    traces = []

    def step(state, piece):
        traces.append(piece)
        return model.apply({**variables, **state}, piece, method="step", mutable=["cache"])

    _, state = jax.eval_shape(step, {}, frames[0])
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    traces.clear()
    jitted = jax.jit(step)
    for i, piece in enumerate(frames):
        logits, state = jitted(state, piece)
        if i in (1, 4):
            np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, VIDEO[:, : 2 * i + 2]), atol=2e-5)
    assert len(traces) == 1
    beyond, _ = jitted(state, frames[0])
    assert jnp.isnan(beyond).all()


def test_steps_keep_the_dtype():
    model, variables = built()
    narrow = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)

    def step(variables, video):
        variables, video = narrow(variables), narrow(video)
        first, state = model.apply(variables, video, method="step", mutable=["cache"])
        second, state = model.apply({**variables, **state}, video, method="step", mutable=["cache"])
        return (first, second), state

    outputs, state = jax.eval_shape(step, variables, VIDEO[:, :2])
    assert {out.dtype for out in outputs} == {jnp.dtype(jnp.bfloat16)}
    kept = state["cache"]["temporal_transformer"]["attn_0"]["kv"]
    assert (kept.shape, kept.dtype) == ((2, 2, 3, 5, 8), jnp.bfloat16)


def test_no_frame_reads_a_later_one():
    for kwargs in ({}, dict(pool="cls"), READS):
        model, variables = built(num_classes=0, **kwargs)
        classes = int("pool" in kwargs)
        first = lambda video: model.apply(variables, video)[:, classes + 1].sum()  # noqa: B023
        slopes = jnp.abs(jax.jit(jax.grad(first))(VIDEO)).sum((0, 2, 3, 4))
        np.testing.assert_array_equal(slopes > 0, [1] * 4 + [0] * 6)


def test_by_default_logits_ignore_the_video():
    reads = {}
    for kwargs in (dict(pool="cls"), dict(pool="mean"), READS, dict(pool="cls", moss_causal=False)):
        model, variables = built(**kwargs)
        apply = jax.jit(model.apply)
        reads[str(kwargs)] = not np.array_equal(*(apply(variables, video) for video in (VIDEO, VIDEO[::-1])))
    assert list(reads.values()) == [False, True, True, True]
    defaults = {field: model.__dataclass_fields__[field].default for field in ("pool", "moss_causal", *READS)}
    assert defaults == dict(pool="cls", moss_causal=True, cls_reads_frames=False)
    assert create_model("vivit_with_moss/tiny", num_classes=2).pool == "mean"


def test_similarities_are_products_with_neighbours():
    x, sides = np.asarray(FEATURES), (3, 5, 1)
    around = np.concatenate([np.zeros_like(x[:, :1]), x, np.zeros_like(x[:, :1])], axis=1)
    expected = np.zeros((*x.shape[:4], *sides))
    for b, t, h, w, u, v in np.ndindex(2, 6, 3, 4, 3, 5):
        if 0 <= t + u - 1 < 6 and 0 <= h + v - 2 < 3:
            expected[b, t, h, w, u, v, 0] = x[b, t, h, w] @ x[b, t + u - 1, h + v - 2, w]
    similarity = self_similarity(FEATURES, jnp.asarray(around), sides)
    np.testing.assert_allclose(similarity, expected.reshape(2, 6, 3, 4, 15), atol=1e-5)


@pytest.mark.parametrize("local_time", [1, 3, 5])
def test_moss_takes_a_video_in_pieces(local_time):
    moss = create_model("vivit_with_moss:MOSS", dim=12, local_time=local_time, hidden_dim=8, causal=True)
    variables, apply = noise(moss, FEATURES), jax.jit(functools.partial(moss.apply, return_cache=True))
    expected, last = apply(variables, FEATURES)
    outputs, cache = [], None
    for piece in jnp.split(FEATURES, [1, 2, 5], axis=1):
        out, cache = apply(variables, piece, cache=cache)
        outputs.append(out)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), cache, last)
    assert [part.shape for part in cache] == [(2, local_time - 1, 3, 4, 12)] * 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(local_time=2), "local_time=2: expected an odd number"),
        (dict(local_height=0), "local_height=0: expected an odd number"),
        (dict(local_width=-1), "local_width=-1: expected an odd number"),
        (dict(hidden_dim=0), "hidden_dim=0: expected at least 1"),
        (dict(orders=-1), "orders=-1: expected at least 0"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model("vivit_with_moss:MOSS", dim=12, **kwargs)
    with pytest.raises(ValueError, match=f"moss_{message}"):
        build(CASE, **{f"moss_{name}": value for name, value in kwargs.items()})


def test_bad_calls_of_moss_are_named():
    moss = create_model("vivit_with_moss:MOSS", dim=12)
    with pytest.raises(ValueError, match=r"features of shape \(2, 6, 3, 4, 5\): expected .* with dim=12"):
        moss.init(jax.random.key(0), FEATURES[..., :5])
    with pytest.raises(ValueError, match="causal=False: expected True, as a cache is given"):
        moss.init(jax.random.key(0), FEATURES, cache=(FEATURES[:, :2],) * 2)
    for wrong in ((FEATURES[:, :2],), (FEATURES[:, :1],) * 2):
        with pytest.raises(ValueError, match=r"cache of shapes .*: expected 2 of \(2, 2, 3, 4, 12\)"):
            moss.clone(causal=True).init(jax.random.key(0), FEATURES, cache=wrong)


def test_bad_calls_are_named():
    model, variables = built()
    with pytest.raises(ValueError, match="moss_causal=True: expected False, as a mask is given"):
        jax.eval_shape(model.apply, variables, VIDEO, mask=jnp.ones((2, 10), bool))
    with pytest.raises(ValueError, match="moss_causal=False: expected True, as a step knows no later frames"):
        stepped(model.clone(moss_causal=False), variables, VIDEO, (2,))
    _, state = stepped(model, variables, VIDEO, (2,))
    with pytest.raises(ValueError, match=r"cache of shapes .*: expected 2 of \(1, 2, 2, 2, 24\)"):
        stepped(model, {**variables, **state}, VIDEO[:1], (2,))
    with pytest.raises(ValueError, match="unknown argument of model 'vivit_with_moss': 'variant'"):
        create_model("vivit_with_moss/tiny", num_classes=2, variant="factorized_encoder")
