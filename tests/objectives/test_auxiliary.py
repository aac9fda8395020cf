"""Losses and further logits that models return with their logits are trained on."""

import inspect
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST, IMAGE_CLASSIFIERS
from tests.cases.case import build
from tests.test_models import inputs_of, variables_of
from vit_jax.objectives.classify import Classify, softmax_cross_entropy
from vit_jax.objectives.supervised import split_outputs


def test_all_that_a_model_returns_is_trained_on():
    """Further logits learn the same targets; every scalar is a loss; other outputs, such as maps, are not."""
    logits = namedtuple("Logits", ["slots", "tokens"])(jnp.zeros((2, 3)), jnp.ones((2, 3)))
    outputs = split_outputs((logits, jnp.zeros((2, 4, 4, 1)), jnp.float32(2), jnp.float32(3)))
    assert outputs.main is logits.slots
    assert outputs.add_losses(0.5, jnp.sum) == 0 + 0.5 * (6 + 2 + 3)
    assert split_outputs(logits).add_losses(0.5, jnp.sum) == 3
    assert split_outputs(logits.tokens).add_losses(0.5, jnp.sum) == 6


LOSSES = {
    "vit_with_decorr": ({}, dict(train=True)),
    "simple_vit_with_sparse_gating": ({}, dict(return_loss=True)),
    "wwt": (dict(return_tokens=True, sigreg_slots=True), dict(train=True)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_models_are_trained_on(name):
    arguments, keywords = LOSSES[name]
    case = FIRST[name]
    model, (images, _) = build(case, **arguments), inputs_of(case)
    target = jnp.asarray(np.eye(5, dtype=np.float32)[: len(images)])
    objectives = [Classify(model, auxiliary_weight=weight) for weight in (0.0, 2.0)]

    extras = dict(variables_of(model, images, {}))
    params = extras.pop("params")

    @jax.jit
    def run(params, extras, images):
        rngs = {"dropout": jax.random.key(1)}
        batch = {"image": images, "target": target}
        losses = [objective.loss(params, extras, batch, rngs, train=True)[0] for objective in objectives]
        outputs = model.apply({"params": params, **extras}, images, rngs=rngs, **keywords)
        return losses, outputs, objectives[0].predict(params, extras, images)

    (plain, weighed), (logits, auxiliary), predicted = run(params, extras, images)
    tokens = 0.0
    if name == "wwt":
        logits, of_tokens = logits
        tokens = softmax_cross_entropy(of_tokens, target).mean()
    assert predicted.shape == logits.shape
    assert auxiliary > 1e-3
    np.testing.assert_allclose(plain, softmax_cross_entropy(logits, target).mean(), rtol=1e-5)
    np.testing.assert_allclose(weighed - plain, 2 * (auxiliary + tokens), rtol=1e-4)


def test_every_keyword_for_a_loss_is_passed_in_training():
    """Models that return a loss on request say so; `vit_with_decorr` returns its own in training by itself."""
    for name in IMAGE_CLASSIFIERS:
        model = build(FIRST[name])
        asked = {key for key in inspect.signature(type(model).__call__).parameters if "loss" in key}
        assert asked - {"return_decorr_aux_loss"} == set(getattr(model, "loss_keywords", ()))
