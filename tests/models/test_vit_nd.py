"""Masks of the ViTNDs, their further outputs, and invalid arguments."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import Case, build, build_upstream
from tests.cases.vit_nd import ND, SPACETIME, SPACETIME_INPUT, dense
from vit_jax.convert import from_torch
from vit_jax.layers.array_patches import grid_positions
from vit_jax.layers.causal import causal_mask

ALL = pytest.mark.parametrize("name", ["vit_nd", "vit_nd_rotary", "vit_nd_pope"])
ENCODED = pytest.mark.parametrize("name", ["vit_nd_rotary", "vit_nd_pope"])
VIDEO = jax.random.normal(jax.random.key(0), (1, 4, 8, 6, 3))


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 4), (2, 3, 1, 4)])
def test_masks_are_upstreams(grid):
    torch = pytest.importorskip("torch")
    importlib.import_module("tests.upstream")  # must come first: it makes vit_pytorch importable
    from vit_pytorch.vit_nd_masking import get_nd_causal_mask_fn

    for axes in ((), (0,), (len(grid) - 1,), tuple(range(len(grid)))):
        tokens = torch.arange(int(np.prod(grid)))
        theirs = get_nd_causal_mask_fn(grid, axes, ndim=len(grid))(0, 0, tokens[:, None], tokens[None])
        np.testing.assert_array_equal(causal_mask(grid_positions(grid), axes), theirs.broadcast_to(2 * (len(tokens),)))


def test_traced_positions_have_masks_of_their_own():
    """As needed when tokens are dropped: the others keep their places."""
    positions = grid_positions((2, 3))
    kept = jnp.asarray([[5, 0, 3], [1, 2, 4]])
    masks = jax.jit(lambda kept: causal_mask(jnp.asarray(positions)[kept], (0, 1)))(kept)
    whole = causal_mask(positions, (0, 1))
    np.testing.assert_array_equal(masks, [whole[np.ix_(row, row)] for row in np.asarray(kept)])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_upstreams_kernel_gives_the_same(monkeypatch):
    """Rows compare with upstream's attention without a kernel; this test compares with its kernel."""
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first, shake

    case = Case(*ND, SPACETIME_INPUT, 0, SPACETIME | dict(causal_dims=(0, 2)), repairs=(dense,))
    model, twin = build(case), shake(build_upstream(case))
    x, _ = case.inputs(np.random.default_rng(0))
    variables = from_torch(model, twin.state_dict(), x)
    monkeypatch.setattr("vit_pytorch.vit_nd_masking.flex_attention_supported", lambda device: True)
    with torch.no_grad():
        expected = twin(channels_first(x)).numpy()
    np.testing.assert_allclose(
        model.apply(variables, jnp.asarray(x)), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


@ENCODED
@pytest.mark.parametrize(("axis", "causal_dims"), [(0, 0), (2, (1, 2))])
def test_no_patch_depends_on_what_is_ahead(name, axis, causal_dims):
    """Through all layers, also for an input larger than `input_shape`."""
    model = build(FIRST[name], causal_dims=causal_dims)
    x = jax.random.normal(jax.random.key(0), (1, 6, 8, 9, 3))
    variables = model.init(jax.random.key(1), x)
    embed = lambda x: model.apply(variables, x, return_embed=True)
    weights = jax.random.normal(jax.random.key(2), embed(x).shape)
    moved, patch = (lambda a: jnp.moveaxis(a, axis + 1, 0)), (2, 4, 3)[axis]
    for place in range(3):
        slopes = jax.grad(lambda x: (moved(embed(x)) * moved(weights))[place].sum())(x)  # noqa: B023
        reads = np.asarray(jnp.abs(moved(slopes)).reshape(3, patch, -1).max(axis=(1, 2)) > 0)
        np.testing.assert_array_equal(reads, np.arange(3) <= place)


def test_the_class_token_is_under_no_mask():
    """It reads the last frame, and the first frame reads it, which thus depends on the last frame after two blocks."""
    model = build(FIRST["vit_nd"], causal_dims=0)
    variables = model.init(jax.random.key(1), VIDEO)
    _, collected = model.apply(variables, VIDEO, mutable=["intermediates"])
    (attn,) = collected["intermediates"]["transformer"]["attn_0"]["attn"]
    frames = np.repeat([-1, 0, 1], [1, 4, 4])
    allowed = (frames[:, None] < 0) | (frames[None] < 0) | (frames[:, None] >= frames[None])
    np.testing.assert_array_equal(np.asarray(attn > 0), np.broadcast_to(allowed, attn.shape))


def test_patches_are_those_of_the_tokens():
    model, tokens = build(FIRST["vit_nd"]), build(FIRST["vit_nd"], num_classes=0)
    variables = model.init(jax.random.key(1), VIDEO)
    cls_token, patches = model.apply(variables, VIDEO, return_nd_patches=True)
    assert patches.shape == (1, 2, 2, 2, 24)
    params = {name: value for name, value in variables["params"].items() if name != "mlp_head"}
    expected = tokens.apply({"params": params}, VIDEO)
    np.testing.assert_array_equal(jnp.concatenate([cls_token[:, None], patches.reshape(1, 8, 24)], axis=1), expected)
    last = tokens.apply({"params": params}, VIDEO.at[:, 2:, :4, 3:].add(1.0))  # patch (1, 0, 1)
    assert np.argmax(jnp.abs(last - expected)[0, 1:].sum(-1)) == 5


@ALL
@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(ndim=0), "ndim=0: expected at least 1"),
        (dict(input_shape=(4, 8, 7)), r"input_shape=\(4, 8, 7\): expected multiples of patch_size=\(2, 4, 3\)"),
        (dict(input_shape=(0, 8, 6)), r"input_shape=\(0, 8, 6\): expected multiples"),
        (dict(input_shape=(4, 8)), r"input_shape=\(4, 8\): expected an integer or 3 of them"),
        (dict(input_shape=None), "input_shape=None: expected an integer or 3 of them"),
        (dict(patch_size=(2, 2, 2, 2)), r"patch_size=\(2, 2, 2, 2\): expected an integer or 3 of them"),
        (dict(patch_size=2.0), "patch_size=2.0: expected an integer or 3 of them"),
        (dict(causal_dims=3), "causal_dims=3: expected axes, each from 0 to 2, as ndim=3"),
        (dict(causal_dims=(0, -1)), r"causal_dims=\(0, -1\): expected axes, each from 0 to 2"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST[name], **kwargs)


@ALL
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 8, 6, 1), r"input of shape \(1, 4, 8, 6, 1\): expected \(batch, 4, 8, 6, channels=3\)"),
        ((1, 4, 8, 3), r"input of shape \(1, 4, 8, 3\): expected \(batch, 4, 8, 6, channels=3\)"),
        ((1, 4, 8, 5, 3), r"input_shape=\(4, 8, 5\): expected multiples of patch_size=\(2, 4, 3\)"),
    ],
)
def test_bad_inputs_are_named(name, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(build(FIRST[name]).init, jax.random.key(0), jnp.ones(shape))


@pytest.mark.parametrize("shape", [(1, 2, 8, 6, 3), (1, 4, 8, 12, 3), (1, 2, 8, 12, 3)])
def test_learned_positions_are_of_one_shape(shape):
    with pytest.raises(ValueError, match=r"input of shape .*: expected input_shape=\(4, 8, 6\) between batch and chan"):
        jax.eval_shape(build(FIRST["vit_nd"]).init, jax.random.key(0), jnp.ones(shape))
