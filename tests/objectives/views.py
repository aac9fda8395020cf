"""Upstream's learners with fixed views, and helpers for tests of objectives with views."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.test_learns import digits
from vit_jax.convert import to_torch

torch = pytest.importorskip("torch")
from tests.upstream import channels_first  # noqa: E402

RNG = np.random.default_rng(0)


def crops(batch: int, *views: int, shape=(16, 16, 3)) -> dict[str, jax.Array]:
    """Noise as global and local views of this number of images."""
    noise = lambda count: jnp.asarray(RNG.standard_normal((batch, count, *shape), np.float32))
    return {name: noise(count) for name, count in zip(("global", "local"), views, strict=True)}


class Fixed(torch.nn.Module):
    """Returns the views (b, v, h, w, c) one after another, in the dtype of its input, which it otherwise ignores."""

    def __init__(self, views: np.ndarray):
        super().__init__()
        self.views = [channels_first(np.array(views[:, i])) for i in range(views.shape[1])]
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.views[(self.calls - 1) % len(self.views)].to(x.dtype)


def fix(learner, drawn: dict) -> None:
    """Make upstream's `learner` use the views `drawn`."""
    learner.local_crop, learner.global_crop = Fixed(drawn["local"]), Fixed(drawn["global"])


def wrapper_of(learner, name: str, called: str) -> dict:
    """The state dict of the learner's wrapper `name`, without the head, with the prefix `called`."""
    state = {key.removeprefix(f"{name}."): v for key, v in learner.state_dict().items() if key.startswith(f"{name}.")}
    state = {key: value for key, value in state.items() if not key.startswith(("net.mlp_head", "net.to_logits"))}
    # Counters, and the empty class token of a model with mean pooling, are stored twice as well, but have no alias.
    net = {key: value for key, value in state.items() if key.startswith("net.") and value.numel() and value.ndim}
    return {f"{called}.{key}": value for key, value in state.items()} | net


def gradients_of(learner) -> dict[str, np.ndarray]:
    """The gradients of upstream's parameters, by name."""
    return {key: p.grad.numpy().copy() for key, p in learner.named_parameters() if p.grad is not None and p.numel()}


def assert_same_gradients(model, gradients, learner, exact=None, variables=()) -> None:
    """Assert that gradients of `model`'s parameters equal those of upstream's `learner`, to a relative error of 1e-5.

    If `exact`, upstream's gradients in float64, shows that upstream's own error is larger, four times that is allowed.
    """
    ours = to_torch(model, {"params": gradients, **dict(variables)})
    theirs = gradients_of(learner)
    assert theirs
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for key, gradient in (exact or theirs).items():
        scale = max(np.abs(gradient).max(), 1e-3 * largest)
        error, their_error = (np.abs(other[key] - gradient).max() / scale for other in (ours, theirs))
        assert error <= max(1e-5, 4 * their_error), f"{key}: {error:.2g}, upstream {their_error:.2g}"


def losses_on_digits(objective, shape, steps: int = 24, rate: float = 3e-3) -> list[float]:
    """The training losses of a few steps on a few digits."""
    batch = digits(32, *shape)
    params, extras = jax.jit(objective.init)(jax.random.key(0), batch["image"])
    optimizer = optax.adam(rate)
    state = optimizer.init(params)

    @jax.jit
    def step(params, extras, state, key):
        rngs = {"objective": key, "dropout": key}
        loss = lambda params: objective.loss(params, extras, batch, rngs, train=True)
        (value, (_, moved)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
        return params, objective.updated(params, moved), state, value

    losses = []
    for key in jax.random.split(jax.random.key(1), steps):
        params, extras, state, value = step(params, extras, state, key)
        losses.append(float(value))
    return losses
