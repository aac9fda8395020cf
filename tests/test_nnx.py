"""Every model under `flax.nnx.bridge.ToNNX` is the program that it is under linen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge
from jax.interpreters import partial_eval

from tests.cases import FIRST
from tests.cases.case import build
from tests.test_models import DROPOUTS, abstract, equations, program
from tests.test_structure import CHANGED_FROM
from vit_jax.layers import ConvNorm
from vit_jax.layers.execution import execution

# One model of each kind: a class token, batch norms, a further loss, several outputs, a list of images.
KINDS = ("vit", "max_vit", "vit_with_decorr", "wwt", "na_vit")
# Changes of another model, and models that take long to trace, of kinds that others have too.
FURTHER = {"twins_svt", "mobile_vit", "crossformer", "cross_vit"}
FURTHER |= {name for name in FIRST if name.partition(":")[0] in CHANGED_FROM}


def some(names, further):
    """Parameters of a test, those of `further` only if it is exhaustive."""
    return [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in further)) for name in names]


def bridged(model, x, kwargs):
    """The model in NNX, whose arrays are abstract."""
    x, kwargs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (x, kwargs))
    return nnx.eval_shape(lambda: bridge.lazy_init(bridge.ToNNX(model, rngs=nnx.Rngs(0, dropout=1)), x, **kwargs))


def operations(closed, outputs: int | None = None) -> list:
    """Primitives and the shapes of their results, of those that the outputs, or the first of them, need."""
    count = len(closed.jaxpr.outvars)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [i < (outputs or count) for i in range(count)])
    return [
        (equation.primitive.name, [out.aval.str_short() for out in equation.outvars]) for equation in equations(jaxpr)
    ]


@pytest.mark.parametrize("name", some(FIRST, FURTHER | {*KINDS}))  # the next test compares those of KINDS in training
def test_a_model_is_the_same_program(name):
    model, variables, x, kwargs = abstract(name)
    graph, state = nnx.split(bridged(model, x, kwargs))
    shapes = lambda tree: sorted((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(tree))
    assert shapes(nnx.state(nnx.merge(graph, state), (nnx.Param, nnx.BatchStat))) == shapes(variables)
    called = jax.make_jaxpr(lambda state, x, kwargs: nnx.merge(graph, state)(x, **kwargs))(state, x, kwargs)
    assert operations(called) == operations(program(name)[0])


def loss_of(outputs):
    """A number that depends on every output."""
    return sum(jnp.mean(jnp.square(out)) for out in jax.tree.leaves(outputs))


@pytest.mark.parametrize("name", ["vit in a loop", *some(FIRST, FIRST.keys() - {*KINDS})])
def test_a_training_step_is_the_same_program(name):
    """Loss, gradients and new statistics with every dropout, and that the step updates all that it should."""
    name, scan, _ = name.partition(" in a loop")
    _, variables, x, kwargs = abstract(name)
    model = build(FIRST[name], **{rate: 0.5 for of, rate in DROPOUTS if of == name})
    options = dict(train=True, mutable=["batch_stats"] if "batch_stats" in variables else False)

    def linen(variables, streams, x, kwargs):
        rngs = {of: jax.random.fold_in(*streams[stream]) for of, stream in (("params", "default"), ("dropout",) * 2)}

        def loss(params):
            given = {**variables, "params": params}
            outputs = model.apply(given, x, rngs=rngs, **options, **kwargs)
            outputs, updates = outputs if options["mutable"] else (outputs, {})
            return loss_of(outputs), updates

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    def step(state, x, kwargs):
        bridged, optimizer = nnx.merge(graph, state)
        value, gradients = nnx.value_and_grad(lambda model: loss_of(model(x, **options, **kwargs)))(bridged)
        optimizer.update(bridged, gradients)
        return (value, nnx.state(bridged, nnx.BatchStat), gradients), nnx.state((bridged, optimizer))

    both = bridged(model, x, kwargs)
    graph, state = nnx.split((both, nnx.eval_shape(lambda: nnx.Optimizer(both, optax.adamw(1e-3), wrt=nnx.Param))))
    with execution(scan=bool(scan)):
        stepped, (results, after) = jax.make_jaxpr(step, return_shape=True)(state, x, kwargs)
        streams = dict.fromkeys(("default", "dropout"), (jax.random.key(0), jnp.uint32(0)))
        expected = operations(jax.make_jaxpr(linen)(variables, streams, x, kwargs))
    compared = len(jax.tree.leaves(results))
    assert operations(stepped, compared) == expected
    assert ("scan" in [primitive for primitive, _ in expected]) == bool(scan)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(after)]
    outputs = dict(zip(names, stepped.jaxpr.outvars[compared:], strict=True))
    kept = [name for name, output in outputs.items() if output in stepped.jaxpr.invars]
    assert kept == [f"[0]['to_nnx__rngs']['{stream}']['key'].value" for stream in ("default", "dropout")]


class Small(nnx.Module):
    """As a user may write it: a part from vit_jax, which has a batch norm, within a module of NNX."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = bridge.ToNNX(ConvNorm(4, kernel=3), rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, images, train=False):
        return self.head(self.conv(images, train=train, mutable=["batch_stats"] if train else False).mean(axis=(1, 2)))


def test_a_step_updates_parameters_and_running_statistics():
    images = jax.device_put(np.random.default_rng(0).standard_normal((4, 8, 8, 2), np.float32))
    small = Small(nnx.Rngs(0))
    bridge.lazy_init(small.conv, images)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(small, (nnx.Param, nnx.BatchStat))))

    @nnx.jit
    def step(small, images):
        gradients = nnx.grad(lambda small: (small(images, train=True) ** 2).mean())(small)
        nnx.update(small, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(small, nnx.Param), gradients))

    step(small, images)
    after = nnx.to_pure_dict(nnx.state(small, (nnx.Param, nnx.BatchStat)))
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-6, before, after)
    assert all(jax.tree.leaves(changed)), changed
