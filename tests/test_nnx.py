"""Every model under `flax.nnx.bridge.ToNNX` is the program that it is under linen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge
from jax.interpreters import partial_eval

from tests.cases import FIRST
from tests.test_models import abstract, equations, program
from vit_jax.layers import ConvNorm


def bridged(model, *inputs, **kwargs):
    """The model in NNX, split into its graph and its state, whose arrays are abstract."""
    make = lambda *inputs, **kwargs: bridge.lazy_init(bridge.ToNNX(model, rngs=nnx.Rngs(0)), *inputs, **kwargs)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (inputs, kwargs))
    return nnx.split(nnx.eval_shape(lambda: make(*zeros[0], **zeros[1])))


def operations(closed) -> list:
    """Primitives and the shapes of their results, without those that outputs do not need, such as keys for dropout."""
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return [
        (equation.primitive.name, [out.aval.str_short() for out in equation.outvars]) for equation in equations(jaxpr)
    ]


@pytest.mark.parametrize("name", FIRST)
def test_a_model_is_the_same_program(name):
    model, variables, x, kwargs = abstract(name)
    graph, state = bridged(model, x, **kwargs)
    shapes = lambda tree: sorted((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(tree))
    assert shapes(nnx.state(nnx.merge(graph, state), (nnx.Param, nnx.BatchStat))) == shapes(variables)
    called = jax.make_jaxpr(lambda state, x, kwargs: nnx.merge(graph, state)(x, **kwargs))(state, x, kwargs)
    assert operations(called) == operations(program(name)[0])


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
