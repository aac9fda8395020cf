"""Shared layers against the implementations in torch, Flax and JAX."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vit_jax.layers.dense import Dense
from vit_jax.layers.depthwise import DepthwiseConv
from vit_jax.layers.execution import execution
from vit_jax.layers.gelu import gelu
from vit_jax.layers.max_pool import max_pool
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.positions import sincos_2d
from vit_jax.layers.softmax import softmax
from vit_jax.layers.to_heads import ToHeads
from vit_jax.layers.tokens import add_positions, append, pool_tokens, prepend
from vit_jax.layers.unfold import unfold, unfold_grid

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape, np.float32))


WINDOWS = [((3, 3), (2, 2), 1), ((7, 7), (4, 4), 2), ((4, 2), (2, 1), 0), ((2, 3), (3, 2), 1), ((1, 1), (1, 1), 0)]


@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
def test_unfold_equals_jax(kernel, stride, padding):
    x = normal(2, 9, 11, 3)
    ours = unfold(x, kernel, stride, padding)
    theirs = jax.lax.conv_general_dilated_patches(
        x, kernel, stride, [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_array_equal(ours, theirs)
    assert ours.shape[1:3] == unfold_grid((9, 11), kernel, stride, padding)


@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
def test_unfold_equals_torch(kernel, stride, padding):
    torch = pytest.importorskip("torch")
    x = normal(2, 9, 11, 3)
    theirs = torch.nn.Unfold(kernel, stride=stride, padding=padding)(torch.from_numpy(np.array(x)).permute(0, 3, 1, 2))
    ours = unfold(x, kernel, stride, padding)
    np.testing.assert_array_equal(ours.reshape(2, -1, ours.shape[-1]), theirs.transpose(1, 2))


def test_unfold_needs_a_window():
    with pytest.raises(ValueError, match=r"image of \(9, 2\) pixels: expected at least \(3, 3\)"):
        unfold(normal(1, 9, 2, 1), (3, 3), (1, 1))


def test_positions_by_hand():
    """Eight features have the frequencies 1 and 1 / temperature; x changes fastest."""
    positions = sincos_2d(2, 3, 8, temperature=100.0)
    assert positions.dtype == np.float32
    y, x = 1, 2
    expected = [f(v * w) for f, v in ((np.sin, x), (np.cos, x), (np.sin, y), (np.cos, y)) for w in (1, 0.01)]
    np.testing.assert_allclose(positions[y * 3 + x], expected, rtol=1e-6)


def test_positions_equal_upstreams():
    pytest.importorskip("torch")
    import tests.upstream  # noqa: F401 (first, as it lets vit_pytorch be imported)

    # isort: split
    from vit_pytorch.simple_vit import posemb_sincos_2d

    np.testing.assert_allclose(sincos_2d(5, 7, 24), posemb_sincos_2d(5, 7, 24), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dim", [4, 6, 0])
def test_positions_refuse_other_widths(dim):
    with pytest.raises(ValueError, match=f"dim={dim}: expected a multiple of 4, and more than 4"):
        sincos_2d(2, 2, dim)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 3, 4, 5), (0, 3, 5)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_equals_flax(shape, use_bias):
    x, ours, theirs = normal(*shape), Dense(7, use_bias=use_bias), nn.Dense(7, use_bias=use_bias)
    variables = ours.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x))
    variables = jax.tree.map(lambda leaf: normal(*leaf.shape), variables)
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-6)


def test_dense_starts_as_flax_does():
    kernel = Dense(400).init(jax.random.key(0), jnp.ones((1, 100)))["params"]["kernel"]
    assert float(kernel.std()) == pytest.approx(100**-0.5, rel=0.02)


@pytest.mark.parametrize("device", ["cpu", "tpu"])
@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4), (2, 3, 5, 4)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_heads_are_parts_of_a_denses_output(shape, use_bias, device):
    parts, heads, dim_head = 3, 2, 6
    x, dense = normal(*shape), Dense(parts * heads * dim_head, use_bias)
    kernel, bias = normal(shape[-1], parts * heads * dim_head), normal(parts * heads * dim_head)
    variables = {"params": {"kernel": kernel} | ({"bias": bias} if use_bias else {})}
    with execution(platform=device):
        outs = ToHeads(parts, heads, dim_head, use_bias).apply(variables, x)
    expected = np.asarray(dense.apply(variables, x)).reshape(*shape[:-1], parts, heads, dim_head)
    assert len(outs) == parts
    for part, out in enumerate(outs):
        np.testing.assert_allclose(out, np.moveaxis(expected[..., part, :, :], -2, -3), rtol=0, atol=1e-6)


def norm(x, scale, bias, **kwargs):
    return np.asarray(LayerNorm(**kwargs).apply({"params": {"scale": scale, "bias": bias}}, x))


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("deviation", [1.0, 1e-3])
def test_layer_norm_keeps_its_digits(mean, deviation):
    """The reference is float64: Flax's fast variance is far off if the mean is a thousand standard deviations."""
    x, scale, bias = normal(4, 64) * deviation + mean, normal(64), normal(64)
    exact = np.asarray(x, np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(scale) + np.asarray(bias)
    # Rounding the mean to float32 is an error of 6e-8 of it, here relative to the deviation or the root of epsilon.
    error = 1e-5 + 2e-7 * mean / max(deviation, 1e-5**0.5)
    np.testing.assert_allclose(norm(x, scale, bias), expected, rtol=0, atol=4 * error)


def test_layer_norm_equals_torchs():
    torch = pytest.importorskip("torch")
    x, scale, bias = normal(4, 64) * 0.1 + 3, normal(64), normal(64)
    tensors = [torch.from_numpy(np.array(value)) for value in (x, scale, bias)]
    expected = torch.nn.functional.layer_norm(tensors[0], (64,), *tensors[1:])
    np.testing.assert_allclose(norm(x, scale, bias), expected, rtol=0, atol=1e-4)


def test_layer_norm_reduces_in_float32():
    """In bfloat16 the mean of 300 plus small noise would be off by up to 1."""
    x, ones = (normal(4, 64) + 300).astype(jnp.bfloat16), jnp.ones(64, jnp.bfloat16)
    out = norm(x, ones, 0 * ones)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), norm(x.astype(jnp.float32), 1.0 * ones, 0.0 * ones), atol=0.02)


def test_softmax_is_computed_in_float32():
    """With bfloat16 scores only the result is rounded, to eight bits: a relative error of at most 2^-8."""
    scores = (normal(50, 200) * 3).astype(jnp.bfloat16)
    out = softmax(scores)
    assert out.dtype == jnp.bfloat16
    exact = np.exp(np.asarray(scores, np.float64))
    np.testing.assert_allclose(np.asarray(out, np.float64), exact / exact.sum(-1, keepdims=True), rtol=2**-8 * 1.01)
    x = normal(3, 9) * 5
    exact = np.exp(np.asarray(x, np.float64))
    np.testing.assert_allclose(softmax(x), exact / exact.sum(-1, keepdims=True), rtol=2e-6)
    assert jnp.isfinite(softmax(jnp.array([[1e4, -1e4, 0.0]]))).all()


@pytest.mark.parametrize("leading", [(), (1,)])
def test_tokens_and_positions(leading):
    x, tokens, positions = normal(2, 3, 4), normal(*leading, 2, 4), normal(*leading, 5, 4)
    for image in range(2):
        np.testing.assert_array_equal(prepend(tokens, x)[image], np.concatenate([tokens.reshape(2, 4), x[image]]))
        np.testing.assert_array_equal(append(x, tokens)[image], np.concatenate([x[image], tokens.reshape(2, 4)]))
        np.testing.assert_array_equal(add_positions(x, positions)[image], x[image] + positions.reshape(5, 4)[:3])


def test_pooling():
    x = normal(2, 3, 4)
    np.testing.assert_array_equal(pool_tokens(x, "cls"), x[:, 0])
    np.testing.assert_allclose(pool_tokens(x, "mean"), np.asarray(x).mean(1), rtol=1e-6)


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    below = np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in x])  # the normal distribution function
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(gelu(jnp.asarray(x)), x * below, rtol=0, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.asarray(x)), below + x * density, rtol=0, atol=1e-6)
    assert gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


def test_softmax_has_softmaxs_gradient():
    x, weights = normal(3, 9) * 5, normal(3, 9)
    ours, theirs = (jax.grad(lambda x, f=f: (f(x) * weights).sum())(x) for f in (softmax, jax.nn.softmax))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kernel", "stride", "multiplier"), [(3, 2, 2), (3, 1, 1), (5, 3, 1), (1, 1, 3)])
def test_depthwise_equals_flax(kernel, stride, multiplier):
    x = normal(2, 9, 8, 4)
    ours = DepthwiseConv(kernel, stride, multiplier)
    theirs = nn.Conv(
        4 * multiplier, (kernel, kernel), strides=stride, padding=kernel // 2, feature_group_count=4, name="twin"
    )
    shapes = jax.eval_shape(ours.init, jax.random.key(0), x)
    assert shapes == jax.eval_shape(theirs.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: normal(*leaf.shape), shapes)
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 6, 11])  # cut into 1, 6 and 1 slices
def test_depthwise_has_the_gradients_of_flax(rows):
    """Reverse and forward, and of each image."""
    x, variables = normal(3, rows, 6, 4), {"params": {"kernel": normal(3, 3, 1, 4), "bias": normal(4)}}
    ours, theirs = DepthwiseConv(3), nn.Conv(4, (3, 3), padding=1, feature_group_count=4)

    def derivatives(module):
        loss = lambda variables, x: (module.apply(variables, x) ** 2).mean()
        return (
            jax.grad(loss, (0, 1))(variables, x),
            jax.jvp(loss, (variables, x), (variables, x)),
            jax.vmap(jax.grad(loss), (None, 0))(variables, x[:, None]),
        )

    for our, their in zip(
        *map(jax.tree.leaves, map(jax.jit(derivatives, static_argnums=0), (ours, theirs))), strict=True
    ):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-5)


POOLS = [
    ((3, 3), (2, 2), ((1, 1), (1, 1))),
    ((2, 3), (2, 1), "VALID"),
    ((3, 3), (1, 1), "SAME"),
    ((2, 2), (2, 2), ((0, 1), (0, 0))),
]


@pytest.mark.parametrize(("window", "strides", "padding"), POOLS)
def test_max_pool_equals_flax(window, strides, padding):
    """The values, and for distinct values the gradient."""
    x = normal(2, 7, 8, 3)
    values, gradients = zip(
        *(jax.vjp(lambda x, f=f: f(x, window, strides, padding), x) for f in (max_pool, nn.max_pool)), strict=True
    )
    np.testing.assert_array_equal(*values)
    weights = normal(*values[0].shape)
    np.testing.assert_allclose(*(gradient(weights)[0] for gradient in gradients), rtol=0, atol=1e-6)


def test_max_pool_treats_equal_values_and_nan_as_torch_does():
    torch = pytest.importorskip("torch")
    x = np.array([[0, 0, 1, 1, np.nan, 2, 2, np.nan]], np.float32)
    theirs = torch.from_numpy(x).requires_grad_()
    pooled = torch.nn.functional.max_pool1d(theirs, 4, 2)
    pooled.backward(torch.ones_like(pooled))
    ours, gradient = jax.vjp(lambda x: max_pool(x, (4,), (2,)), jnp.asarray(x)[..., None])
    np.testing.assert_array_equal(ours[..., 0], pooled.detach())
    np.testing.assert_array_equal(gradient(jnp.ones_like(ours))[0][..., 0], theirs.grad)
