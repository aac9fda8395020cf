"""Stochastic depth: what a branch becomes, the rates of blocks, and the models that have it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.cases import FIRST
from tests.cases.case import build
from tests.test_models import DROPOUTS, inputs_of, variables_of
from train.build import DataInfo, build_model
from train.errors import UserError
from vit_jax.layers import drop_path as layer
from vit_jax.layers import drop_rates, stage_rates
from vit_jax.layers.execution import execution

# Rows with a single block, whose rate is 0.
DEEPER = {name: dict(depth=(2,)) for name in ("max_vit", "max_vit_with_registers", "sep_vit")}
RATED = [name for name, argument in DROPOUTS if argument == "drop_path"]


class Dropped(nn.Module):
    rate: float

    def __call__(self, branch):
        return layer.drop_path(self, self.rate, branch)


def test_a_row_is_dropped_or_scaled():
    """As in timm: each row by itself, divided by the share of rows that are kept."""
    count, rate = 4000, 0.3
    branch = jax.random.normal(jax.random.key(0), (count, 3, 2))
    out = np.asarray(Dropped(rate).apply({}, branch, rngs={"dropout": jax.random.key(1)}))
    kept = np.any(out != 0, axis=(1, 2))
    np.testing.assert_allclose(out[kept], np.asarray(branch)[kept] / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / count)


def test_a_rate_of_one_drops_everything_and_its_gradient():
    branch, rngs = jnp.ones((2, 3), jnp.bfloat16), {"dropout": jax.random.key(0)}
    out, pull = jax.vjp(lambda branch: Dropped(1.0).apply({}, branch, rngs=rngs), branch)
    assert out.dtype == jnp.bfloat16
    assert not out.any()
    assert not pull(branch)[0].any()


def test_rates_are_timms():
    pytest.importorskip("tests.upstream")  # makes torchvision importable, which timm imports
    timm = pytest.importorskip("timm")
    assert drop_rates(0.3, 5) == pytest.approx(timm.layers.calculate_drop_path_rates(0.3, 5))
    expected = timm.layers.calculate_drop_path_rates(0.3, [2, 1, 3], stagewise=False)
    assert np.concatenate(stage_rates(0.3, (2, 1, 3))) == pytest.approx(np.hstack(expected))


@pytest.mark.parametrize("settings", [{}, dict(scan=True), dict(remat="full")], ids=str)
@pytest.mark.parametrize("name", ["vit", "simple_vit_with_qk_norm"])
def test_a_dropped_block_is_the_identity(name, settings):
    """The rates of two blocks are 0 and 1, so that training is the evaluation of the first block alone."""
    deep, shallow = build(FIRST[name], depth=2, drop_path=1.0), build(FIRST[name], depth=1)
    x, _ = inputs_of(FIRST[name])
    variables = variables_of(deep, x, {})
    first = {key: value for key, value in variables["params"]["transformer"].items() if not key.endswith("_1")}

    @jax.jit
    def both(variables, x):
        params = variables["params"]
        with execution(**settings):
            dropped = deep.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})
        return dropped, shallow.apply({"params": {**params, "transformer": first}}, x)

    np.testing.assert_allclose(*both(variables, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, dict(scan=True)], ids=str)
def test_images_drop_by_themselves(settings):
    """Equal images differ after training, in as many ways as the branches of three blocks allow."""
    model, (x, _) = build(FIRST["vit"], depth=3, drop_path=0.9), inputs_of(FIRST["vit"])
    variables, x = variables_of(model, x, {}), jnp.repeat(x[:1], 64, axis=0)

    @jax.jit
    def train(variables, x):
        with execution(**settings):
            return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})

    kinds = len(np.unique(np.asarray(train(variables, x)).round(3), axis=0))
    assert 4 < kinds <= 2**4  # two branches in each block but the first, whose rate is 0


@pytest.mark.parametrize("name", RATED)
def test_rates_rise_linearly_over_the_blocks(name, monkeypatch):
    rates, plain = [], layer.drop_path

    def record(module, rate, branch):
        rates.append(rate)
        return plain(module, rate, branch)

    monkeypatch.setattr(layer, "drop_path", record)
    case = FIRST[name]
    model, (x, kwargs) = build(case, drop_path=0.6, **DEEPER.get(name, {})), inputs_of(case)
    apply = functools.partial(model.init, train=True)
    jax.eval_shape(apply, {"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, **kwargs)
    distinct = sorted(set(rates))
    assert distinct
    assert distinct == pytest.approx(np.linspace(0, 0.6, len(distinct) + 1)[1:])


INFO = DataInfo(("a", "b"), (32, 32, 3), (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("vit", "drop_path"), ("cct", "stochastic_depth_rate")],
)
def test_the_option_sets_the_models_argument(name, argument):
    assert getattr(build_model(name, (), INFO, drop_path=0.2), argument) == 0.2


@pytest.mark.parametrize(
    ("name", "pairs", "message"),
    [
        ("resnet18", (), "--drop-path: resnet18 has no stochastic depth"),
        ("vit", ("drop_path=0.1",), "--model-args drop_path: is set by --drop-path"),
    ],
)
def test_the_option_is_refused(name, pairs, message):
    with pytest.raises(UserError, match=message):
        build_model(name, pairs, INFO, drop_path=0.2)
