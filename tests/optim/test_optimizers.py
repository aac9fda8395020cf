"""Updates of optimizers against numpy, torch and timm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.optim.updates import GRADS, PARAMS, of_timm, reference, run, updated, with_
from train.errors import UserError
from train.optim import make_average, make_optimizer, make_schedule
from train.optim.cautious import cautious


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion"])
def test_two_updates_against_numpy(name):
    history = run(with_(name=name))
    for leaf, decay in (("kernel", 0.3), ("bias", 0.0)):
        grads = [g["fc"][leaf].astype(np.float64) for g in GRADS]
        expected = reference(name, PARAMS["fc"][leaf].astype(np.float64), grads, decay, adapt=leaf == "kernel")
        for got, want in zip(history, expected, strict=True):
            np.testing.assert_allclose(got[leaf], want, rtol=2e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion"])
def test_cautious_updates_against_numpy(name):
    w, *grads = (np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32) for seed in range(3))
    history = updated(with_(name=name, cautious=True), {"kernel": w}, [{"kernel": g} for g in grads])
    exact = [x.astype(np.float64) for x in (w, *grads)]
    expected = reference(name, exact[0], exact[1:], 0.3, adapt=True, masked=True)
    plain = reference(name, exact[0], exact[1:], 0.3, adapt=True)
    assert np.abs(expected[1] - plain[1]).max() > 0.01  # some of the second updates do not agree
    for got, want in zip(history, expected, strict=True):
        np.testing.assert_allclose(got["kernel"], want, rtol=1e-5, atol=1e-6)


def test_cautious_updates_against_timm():
    torch, adamw = of_timm("adamw")
    w, *grads = (np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32) for seed in range(3))
    weight = torch.nn.Parameter(torch.tensor(w))
    theirs = adamw.AdamWLegacy([weight], lr=0.1, betas=(0.8, 0.95), weight_decay=0.3, caution=True)
    ours = updated(with_(cautious=True), {"kernel": w}, [{"kernel": g} for g in grads], lambda step: 0.1)
    for gradient, got in zip(grads, ours, strict=True):
        weight.grad = torch.tensor(gradient)
        theirs.step()
        np.testing.assert_allclose(got["kernel"], weight.detach(), rtol=1e-5, atol=1e-6)


def test_an_update_that_agrees_nowhere_is_left_out():
    optimizer = cautious(optax.scale(-1.0))
    updates, _ = optimizer.update({"w": jnp.arange(3.0)}, optimizer.init({"w": jnp.zeros(3)}))
    np.testing.assert_array_equal(updates["w"], [0, 0, 0])


def test_schedule_free_adamw_against_numpy():
    """Two updates by algorithm 1 of the paper (arXiv:2405.15682), with learning rates that rise."""
    rate, b1, b2, decay = lambda step: 0.1 * (step + 1), 0.8, 0.95, 0.3
    w, *grads = (np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32) for seed in range(4))
    config = with_(name="schedule_free_adamw")
    optimizer = make_optimizer(config, rate, {"kernel": w})
    params, state = {"kernel": jnp.asarray(w)}, optimizer.init({"kernel": jnp.asarray(w)})
    x = y = z = w.astype(np.float64)
    v = weights = 0.0
    for t, g in enumerate(grads):
        updates, state = optimizer.update({"kernel": g}, state, params)
        params = optax.apply_updates(params, updates)
        averaged = make_average(config)(None, params, state, t)
        v = b2 * v + (1 - b2) * g.astype(np.float64) ** 2
        z = z - rate(t) * (g / (np.sqrt(v / (1 - b2 ** (t + 1))) + 1e-8) + decay * y)
        weight = rate(t + 1) ** 2  # optax counts from 1 here
        weights += weight
        x = x + weight / weights * (z - x)
        y = b1 * x + (1 - b1) * z
        np.testing.assert_allclose(params["kernel"], y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(averaged["kernel"], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_two_updates_against_torch(name):
    torch = pytest.importorskip("torch")
    kernel, bias = (torch.nn.Parameter(torch.tensor(PARAMS["fc"][leaf])) for leaf in ("kernel", "bias"))
    decay = 0.3 if name == "adamw" else 0.0  # torch's SGD has no decoupled decay
    groups = [{"params": [kernel], "weight_decay": decay}, {"params": [bias], "weight_decay": 0.0}]
    if name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95))
    else:
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.8, nesterov=True)
    history = run(with_(name=name, weight_decay=decay), schedule=lambda step: 0.1)
    for grads, got in zip(GRADS, history, strict=True):
        kernel.grad, bias.grad = (torch.tensor(grads["fc"][leaf]) for leaf in ("kernel", "bias"))
        optimizer.step()
        np.testing.assert_allclose(got["kernel"], kernel.detach(), rtol=2e-6)
        np.testing.assert_allclose(got["bias"], bias.detach(), rtol=2e-6)


def test_clipping_scales_all_gradients_by_the_global_norm():
    norm = float(np.sqrt(sum((g**2).sum() for g in GRADS[0]["fc"].values())))
    plain = with_(name="sgd", weight_decay=0.0, beta1=0.0)
    free, clipped, loose = (run(dataclasses.replace(plain, clip_norm=c))[0] for c in (0.0, norm / 4, norm * 2))
    for leaf, start in PARAMS["fc"].items():
        np.testing.assert_allclose(clipped[leaf] - start, (free[leaf] - start) / 4, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(loose[leaf], free[leaf])


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion", "schedule_free_adamw"])
def test_abstract_parameters_suffice_and_the_state_can_be_abstract(name):
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
    optimizer = make_optimizer(with_(name=name, layer_decay=0.9, clip_norm=1.0), optax.constant_schedule(0.1), abstract)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(optimizer.init, abstract))
    state = optimizer.init(PARAMS)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    jax.jit(optimizer.update)(GRADS[0], state, PARAMS)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("warmup-epochs", -1.0),
        ("final-lr", -0.1),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("weight-decay", -0.1),
        ("layer-decay", 0.0),
        ("layer-decay", 1.1),
        ("clip-norm", -1.0),
    ],
)
def test_senseless_values_are_named(option, value):
    config = with_(**{option.replace("-", "_"): value})
    with pytest.raises(UserError, match=f"--optim.{option} is {value}; it must be"):
        make_schedule(config, 100, 10.0)
    with pytest.raises(UserError, match=f"--optim.{option} is {value}; it must be"):
        make_optimizer(config, optax.constant_schedule(0.1), PARAMS)
