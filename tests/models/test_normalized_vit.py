"""Tokens of nViT have unit length; normalised weights equal upstream's and do not change the output."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from train.build import DataInfo, build_objective
from train.config import Config, Optim
from train.errors import UserError
from train.step import TrainState, make_train_step
from vit_jax.convert import from_torch, to_torch
from vit_jax.models.normalized_vit import normalize_weights
from vit_jax.objectives import create_objective

CASE = FIRST["normalized_vit"]


def test_tokens_have_length_one():
    model, x = build(CASE, num_classes=0), jax.random.normal(jax.random.key(0), CASE.input_shape)
    tokens, _ = model.init_with_output(jax.random.key(1), x)
    np.testing.assert_allclose(jnp.linalg.norm(tokens, axis=-1), 1, atol=1e-6)


def test_normalized_weights_are_upstreams_and_change_nothing():
    pytest.importorskip("torch")
    from tests.upstream import shake

    model, twin = build(CASE), shake(build_upstream(CASE))
    x = jax.random.normal(jax.random.key(0), CASE.input_shape)
    variables = from_torch(model, twin.state_dict(), x)
    normalized = {"params": normalize_weights(variables["params"])}
    twin.norm_weights_()
    for name, value in to_torch(model, normalized).items():
        np.testing.assert_allclose(value, twin.state_dict()[name], atol=1e-6, err_msg=name)
    np.testing.assert_allclose(model.apply(normalized, x), model.apply(variables, x), atol=1e-5)


def test_a_training_step_normalizes_the_weights_as_upstream_does():
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first, shake

    model, twin = build(CASE), shake(build_upstream(CASE))
    x, labels = np.asarray(jax.random.normal(jax.random.key(0), CASE.input_shape)), np.arange(CASE.input_shape[0])
    objective, optimizer = create_objective("classify", model), optax.sgd(0.5)
    params = from_torch(model, twin.state_dict(), x)["params"]
    state = TrainState(0, params, {}, optimizer.init(params), None)
    step = make_train_step(objective, optimizer, lambda _, batch: (batch["image"], batch["target"]))
    batch = {"image": x, "target": np.eye(CASE.kwargs["num_classes"], dtype=np.float32)[labels]}
    trained, _ = jax.jit(step)(state, batch, {})

    sgd = torch.optim.SGD(twin.parameters(), lr=0.5)
    torch.nn.functional.cross_entropy(twin(channels_first(x)), torch.from_numpy(labels)).backward()
    sgd.step()
    twin.norm_weights_()
    for name, value in to_torch(model, {"params": trained.params}).items():
        np.testing.assert_allclose(value, twin.state_dict()[name], atol=1e-5, err_msg=name)


def test_only_weights_that_are_trained_are_normalized():
    """The model may be a part of what is trained, and some of its parameters may be frozen."""
    student, ones = build(CASE), jnp.ones((4, 5))
    objective = create_objective("feature_distill", student, teacher=None)
    constrained = objective.constrained({"student": {"to_pred": {"kernel": ones}}, "head": {"kernel": ones}})
    np.testing.assert_allclose(constrained["student"]["to_pred"]["kernel"], ones / 2)  # each column has length 2
    assert constrained["head"]["kernel"] is ones
    without = {"head": {"kernel": ones}}
    assert objective.constrained(without) is without


def test_a_hidden_feature_is_left():
    with pytest.raises(ValueError, match="mlp_dim=1: expected at least 2"):
        build(CASE, mlp_dim=1)


def test_an_optimizer_that_needs_its_own_weights_is_refused():
    config = Config(model="normalized_vit", optim=Optim(name="schedule_free_adamw"))
    info = DataInfo(("a", "b"), (32, 32, 3), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match="schedule_free_adamw: not with normalized_vit"):
        build_objective(config, info)
