"""Rotary and polar positions of the ViTNDs: frequencies, invariances, the learned bias."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from vit_jax.convert import from_torch
from vit_jax.layers import golden_gate
from vit_jax.models.vit_nd_pope import polar
from vit_jax.models.vit_nd_rotary import turn

GRID = (3, 4, 2)
X = jax.random.normal(jax.random.key(0), (1, 4, 8, 6, 3))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 4, 1), (2, 7, 2), (8, 64, 3), (2, 12, 4), (2, 5, 7)], ids=str)
@pytest.mark.parametrize("lengths", [(1.0, 10000.0, 0.0), (0.5, 20.0, 0.3), (2.0, 2.0, 1.0)], ids=str)
def test_frequencies_are_upstreams(sizes, lengths):
    """To the last digit, since float32 angles near 10,000 radians have few decimals."""
    pytest.importorskip("torch")
    importlib.import_module("tests.upstream")  # must come first: it makes vit_pytorch importable
    from vit_pytorch.vit_nd_pope import GoldenGatePoPENd

    heads, features, axes = sizes
    theirs = GoldenGatePoPENd(axes, heads, features, *lengths).freqs.numpy()
    ours = golden_gate.frequencies(*sizes, *lengths)
    assert ours.dtype == np.float32
    np.testing.assert_array_max_ulp(ours, theirs, maxulp=2)  # torch's power is rarely not correctly rounded
    assert (ours == theirs).mean() > 0.9


@pytest.mark.parametrize(("encode", "features"), [(turn, 8), (polar, 4)])
def test_products_depend_on_offsets_alone(encode, features):
    """The product of a query and a key, in each of two heads, does not depend on their place on the grid."""
    angles = golden_gate.angles(golden_gate.frequencies(2, 4, 3, 0.1, 2.0, 0.0), GRID)
    sin_cos = jnp.asarray(golden_gate.sin_cos(angles))
    q, k = np.random.default_rng(1).standard_normal((2, 1, 2, 1, features), np.float32)
    encoded = (encode(jnp.broadcast_to(row, (1, 2, 24, features)), sin_cos) for row in (q, k))
    scores = np.asarray(jnp.einsum("bhid,bhjd->ijh", *encoded)).reshape(*GRID, *GRID, 2)

    size = jax.nn.softplus if encode is polar else lambda x: x
    here, offsets = (size(q) * size(k)).sum(-1).reshape(2), {}
    for a in np.ndindex(GRID):
        np.testing.assert_allclose(scores[(*a, *a)], here, rtol=1e-5)
        for b in np.ndindex(GRID):
            offsets.setdefault(tuple(np.subtract(a, b).tolist()), []).append(scores[(*a, *b)])
    for offset, values in offsets.items():
        np.testing.assert_allclose(values, np.broadcast_to(values[0], np.shape(values)), rtol=1e-4, atol=1e-5)
        back = offsets[tuple(-step for step in offset)][0]
        same = np.abs(values[0] - back).max() < 1e-4
        assert same == (encode is polar or not any(offset))  # polar products without bias are symmetric
    distinct = np.unique(np.stack([values[0] for values in offsets.values()]).round(3), axis=0)
    assert len(distinct) == (len(offsets) if encode is turn else (len(offsets) + 1) // 2)


def test_the_bias_moves_from_where_it_starts_as_upstreams():
    """At 0, the end of its range, its gradient is not halved; outside of the range it is zero."""
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first

    case = FIRST["vit_nd_pope"]
    model, twin = build(case), build_upstream(case).eval()
    twin.polar_emb.learned_bias.data[0, :4] = torch.tensor([0.1, -7.0, -2 * torch.pi, -1.0])
    variables = from_torch(model, twin.state_dict(), X)
    twin(channels_first(np.asarray(X)))[0, 0].backward()
    theirs = twin.polar_emb.learned_bias.grad.numpy()
    ours = jax.grad(lambda variables: model.apply(variables, X)[0, 0])(variables)["params"]["learned_bias"]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    np.testing.assert_array_equal(ours[0] != 0, [False, False, True, True, True, True, True, True])


def test_the_bias_can_start_anywhere():
    bias = lambda **kwargs: build(FIRST["vit_nd_pope"], **kwargs).init(jax.random.key(0), X)["params"]["learned_bias"]
    np.testing.assert_array_equal(bias(), np.zeros((3, 8)))
    drawn = bias(pope_init_learned_bias_uniform=True, heads=64)
    assert -2 * np.pi <= drawn.min() < -6 < -0.3 < drawn.max() <= 0
    assert abs(drawn.mean() + np.pi) < 4 * 2 * np.pi / np.sqrt(12 * drawn.size)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("vit_nd_rotary", dict(dim_head=7), "dim_head=7: expected an even number of features"),
        ("vit_nd_rotary", dict(rope_min_freq=0.0), "rope_min_freq=0.0: expected a frequency above 0"),
        ("vit_nd_rotary", dict(rope_max_freq=-1.0), "rope_max_freq=-1.0: expected a frequency above 0"),
        ("vit_nd_rotary", dict(rope_p_zero_freqs=1.1), "rope_p_zero_freqs=1.1: expected 0 to 1"),
        ("vit_nd_pope", dict(pope_min_freq=-1.0), "pope_min_freq=-1.0: expected a frequency above 0"),
        ("vit_nd_pope", dict(pope_p_zero_freqs=-0.1), "pope_p_zero_freqs=-0.1: expected 0 to 1"),
    ],
)
def test_bad_frequencies_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST[name], **kwargs)
