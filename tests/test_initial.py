"""The initial variables of a run: every loaded variable is used, and reported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from tests.cases import FIRST
from tests.cases.case import build
from train.build import DataInfo
from train.config import Config
from train.initial import Initial, load_initial, started_from
from train.run.stored import InitReport
from train.step import TrainState
from vit_jax.convert import to_torch
from vit_jax.objectives.classify import Classify


@pytest.fixture(scope="module")
def objective():
    """The objective of a model with running statistics."""
    return Classify(build(FIRST["levit"]))


def abstract_state(objective, shape) -> TrainState:
    params, extras = jax.eval_shape(objective.init, jax.random.key(0), jnp.zeros(shape))
    return TrainState(None, params, extras, None, None)


def test_weights_are_loaded_with_running_statistics(objective, tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    shape = FIRST["levit"].input_shape
    state = abstract_state(objective, shape)
    rng = np.random.default_rng(0)
    given = jax.tree.map(lambda x: rng.random(x.shape, np.float32), {"params": state.params, **state.extras})
    save_file(to_torch(objective.model, given), tmp_path / "w.safetensors")

    info = DataInfo(("a", "b"), shape[1:], (0.5,) * 3, (0.5,) * 3)
    initial = load_initial(Config(init=f"{tmp_path}/w.safetensors"), objective, info, state)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), state)
    fresh = zeros.replace(ema=zeros.params)
    started = started_from(fresh, initial)
    for ours, theirs in ((started.params, given["params"]), (started.ema, given["params"])):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, started.extras["batch_stats"], given["batch_stats"])

    report = initial.report
    assert (report.resampled, report.random) == ((), ())
    statistics = {"/".join(path) for path in flatten_dict({"batch_stats": given["batch_stats"]})}
    assert statistics == {name for name in report.loaded if name.startswith("batch_stats/")}
    assert len(report.loaded) == len(jax.tree.leaves(given))


def test_schedule_free_optimizers_start_from_what_is_loaded():
    """Also if a part is frozen, for which they have no state."""
    params = {"encoder": {"a": jnp.zeros(2), "frozen": jnp.zeros(2)}, "head": jnp.zeros(2)}
    optimizer = optax.contrib.schedule_free_adamw()
    opt_state = optimizer.init({"encoder": {"a": jnp.zeros(2)}, "head": jnp.zeros(2)})
    state = TrainState(jnp.zeros(()), params, {}, opt_state, params)
    loaded = {"params": {"a": jnp.ones(2), "frozen": jnp.full(2, 2.0)}}
    z = started_from(state, Initial(loaded, ("encoder",), InitReport())).opt_state.z
    assert jax.tree.map(lambda x: x.tolist(), z) == {"encoder": {"a": [1, 1]}, "head": [0, 0]}


def test_only_what_is_loaded_is_replaced():
    zeros = lambda: {"encoder": {"a": jnp.zeros(2)}, "head": jnp.zeros(2)}
    extras = {"batch_stats": zeros(), "ema": zeros(), "centre": {"encoder": jnp.zeros(2)}}
    state = TrainState(jnp.zeros(()), zeros(), extras, (), zeros())
    variables = {"params": {"a": jnp.ones(2)}, "batch_stats": {"a": jnp.full(2, 2.0)}}
    started = started_from(state, Initial(variables, ("encoder",), InitReport()))
    for tree, value in ((started.params, 1), (started.ema, 1), (started.extras["ema"], 1)):
        np.testing.assert_array_equal(tree["encoder"]["a"], value)
        np.testing.assert_array_equal(tree["head"], 0)
    np.testing.assert_array_equal(started.extras["batch_stats"]["encoder"]["a"], 2)
    np.testing.assert_array_equal(started.extras["centre"]["encoder"], 0)


def test_random_numbers_alone_are_no_report(objective):
    info = DataInfo(("a", "b"), (8, 8, 3), (0.5,) * 3, (0.5,) * 3)
    assert load_initial(Config(), objective, info, abstract_state(objective, FIRST["levit"].input_shape)) is None
