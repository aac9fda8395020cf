"""Rematerialisation and loops over blocks change neither results nor parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from tests.test_models import equations, inputs_of, variables_of
from vit_jax.layers.execution import execution


def gradient(model, variables, x, **settings):
    """Value and gradient of a weighted sum of all outputs, and the stacks of blocks that applied the settings."""

    def loss(params, x):
        outputs = jax.tree.leaves(model.apply({**variables, "params": params}, x))
        return sum(jnp.vdot(jnp.cos(jnp.arange(out.size)), out.reshape(-1)) for out in outputs)

    with execution(**settings) as used:
        result = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables["params"], x)
    return result, used.stacks


def assert_close(ours, theirs):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=3e-5 * np.abs(b).max() + 1e-8), ours, theirs
    )


NAMES = ("vit", "simple_vit", "pit", "vit_5", "cross_vit", "deepvit", "vit_3d", "looped_vit")
WAYS = (dict(remat="dots"), dict(remat="full"), dict(scan=True), dict(platform="tpu"))


@functools.cache
def plain(name: str):
    """A model, its variables and input; and their gradient without any settings."""
    model, (x, _) = build(FIRST[name]), inputs_of(FIRST[name])
    variables = variables_of(model, x, {})
    return (model, variables, x), gradient(model, variables, x)[0]


# A block is computed again in the same way whatever it holds; a loop and a TPU's layout ask more of each model.
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param(
            name,
            settings,
            marks=[] if name == "vit" else [pytest.mark.exhaustive if "remat" in settings else pytest.mark.slow],
            id=f"{name}-{settings}",
        )
        for name in NAMES
        for settings in WAYS
    ],
)
def test_values_and_gradients_stay(name, settings):
    arguments, plain_gradient = plain(name)
    other, stacks = gradient(*arguments, **settings)
    assert stacks
    assert_close(other, plain_gradient)


def count(jaxpr, primitive: str) -> int:
    return sum(equation.primitive.name == primitive for equation in equations(jaxpr))


def axes_of_results(jaxpr, primitive: str) -> list[int]:
    return [e.outvars[0].aval.ndim for e in equations(jaxpr) if e.primitive.name == primitive]


def traced(depth: int, **settings):
    model = build(FIRST["vit"], depth=depth)
    (x, _) = inputs_of(FIRST["vit"])
    variables = variables_of(model, x, {})
    with execution(**settings):
        return jax.make_jaxpr(jax.grad(lambda v: model.apply(v, x).sum()))(variables).jaxpr


def test_a_loop_is_as_long_for_twelve_blocks_as_for_two():
    assert count(traced(12, scan=True), "dot_general") == count(traced(2, scan=True), "dot_general")
    assert count(traced(12), "dot_general") > 5 * count(traced(2), "dot_general") / 2


def test_a_loop_keeps_a_feed_forwards_product_and_activation_alone():
    """Not the values between them, which the gradient needs too: they are cheap to recompute."""
    depth, images, tokens, hidden = 4, 2, 17, 40
    scan = next(e for e in equations(traced(depth, scan=True)) if e.primitive.name == "scan")
    kept = [out.aval.size for out in scan.outvars].count(depth * images * tokens * hidden)
    assert 2 <= kept <= 3  # with jax 0.12 the activation counts twice, before and after it has its name


def test_a_loop_adds_no_bias_again():
    """The backward loop does not need the biases of the feed-forwards' first layers, as their outputs are saved."""
    depth, hidden = 4, 40
    forward, backward = (e for e in equations(traced(depth, scan=True)) if e.primitive.name == "scan")
    biases = lambda scan: [x.aval.shape for x in scan.invars].count((depth, hidden))
    assert biases(forward) == 1
    assert biases(backward) == 0


def test_what_is_computed_again():
    """The backward pass repeats all matmuls of a block with "full", and only those of attention with "dots"."""
    products = {remat: count(traced(2, remat=remat), "dot_general") for remat in ("none", "dots", "full")}
    assert products["none"] < products["dots"] < products["full"]
    assert products["dots"] - products["none"] <= 2 * 2  # scores and their sum over values, of two blocks


def test_parameters_do_not_know_of_it():
    model, (x, _) = build(FIRST["vit"]), inputs_of(FIRST["vit"])
    init = lambda: jax.jit(lambda: model.init(jax.random.key(0), x))()
    variables = init()
    with execution(scan=True, remat="full"):
        assert_same_tree(init(), variables)
        collect = lambda variables: model.apply(variables, x, mutable=["intermediates"])[1]
        maps = jax.eval_shape(collect, variables)  # what is collected has the names that it always has
    assert {"attn_0", "attn_1"} <= set(maps["intermediates"]["transformer"])


def assert_same_tree(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_settings_are_part_of_the_key_of_jit():
    """A jitted function has one cached program for each setting."""
    model, (x, _) = build(FIRST["vit"]), inputs_of(FIRST["vit"])
    variables = variables_of(model, x, {})
    apply = jax.jit(model.apply)

    def program(**settings):
        with execution(**settings):
            return apply.trace(variables, x).jaxpr

    plain, looped, tpu = program(), program(scan=True, remat="full"), program(platform="tpu")
    assert [count(each, "scan") for each in (plain, looped, tpu)] == [0, 1, 0]
    assert axes_of_results(plain, "transpose").count(5) > 0  # takes queries, keys and values apart
    assert axes_of_results(tpu, "transpose").count(5) == 0
    outs = [apply(variables, x)]
    for settings in (dict(scan=True, remat="full"), dict(platform="tpu"), dict(scan=True, remat="full"), {}):
        with execution(**settings):
            outs.append(apply(variables, x))
    for out in outs[1:]:
        np.testing.assert_allclose(out, outs[0], rtol=0, atol=1e-5)
    assert apply._cache_size() == 3


def test_dropout_differs_from_block_to_block_and_by_key():
    case = FIRST["vit"]
    model, (x, _) = build(case, dropout=0.5), inputs_of(case)
    variables = variables_of(model, x, {})
    with execution(scan=True):
        train = jax.jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
        keys = [jax.random.key(seed) for seed in (0, 0, 1)]
        first, again, other = map(train, keys)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_on_a_tpu_no_array_is_moved_for_a_product():
    """Axes of activations are not merged, and queries, keys and values are not split, as either would copy an array."""
    model, (x, _) = build(FIRST["vit"]), inputs_of(FIRST["vit"])
    variables = variables_of(model, x, {})

    def axes(platform, primitive):
        with execution(platform=platform):
            return axes_of_results(jax.make_jaxpr(model.apply)(variables, x).jaxpr, primitive)

    assert axes("tpu", "dot_general").count(2) == 1  # the head's, which follows the pooling
    assert axes("cpu", "dot_general").count(2) > 1
    assert axes("tpu", "transpose").count(5) == 0
    assert axes("cpu", "transpose").count(5) > 0


def test_on_a_tpu_no_barrier_keeps_gelu_from_being_fused():
    barred = lambda platform: sum(np.any(e.params.get("prevent_cse")) for e in equations(traced(2, platform=platform)))
    assert barred("tpu") == 0
    assert barred("cpu") == 2  # one in each block


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match="remat='all': expected one of 'none', 'dots', 'full'"), execution(remat="all"):
        pass
