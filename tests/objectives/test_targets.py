"""The objectives of labels and numbers, and class weights, against torch and numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vit_jax.objectives import create_objective
from vit_jax.objectives.classify import Classify

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=2, size=(6, 4)).astype(np.float32)
LABELS = RNG.integers(0, 2, (6, 4)).astype(np.float32)
NUMBERS = RNG.normal(size=(6, 4)).astype(np.float32)
CLASSES = np.array([0, 3, 3, 1, 2, 3])
WEIGHTS = (0.5, 2.0, 1.0, 4.0)


class Given(nn.Module):
    """A model whose outputs are its images."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return x + self.param("zero", nn.initializers.zeros, (1, 1))


def loss_of(objective, targets, logits=LOGITS):
    """The loss of `objective`, and its gradient by the logits."""
    params, extras = objective.init(jax.random.key(0), jnp.asarray(logits))
    batch = lambda x: {"image": x, "target": jnp.asarray(targets, jnp.float32)}
    return jax.value_and_grad(lambda x: objective.loss(params, extras, batch(x), {}, True)[0])(jnp.asarray(logits))


def torch_loss(loss, targets, logits=LOGITS):
    torch = pytest.importorskip("torch")
    x = torch.tensor(logits, requires_grad=True)
    value = loss(torch)(x, torch.tensor(targets))
    value.backward()
    return value.detach().numpy(), x.grad.numpy()


@pytest.mark.parametrize(
    ("name", "arguments", "targets", "theirs"),
    [
        ("multilabel", {}, LABELS, lambda torch: torch.nn.BCEWithLogitsLoss()),
        (
            "multilabel",
            {"class_weights": WEIGHTS},
            LABELS,
            lambda torch: torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(WEIGHTS)),
        ),
        ("regress", {}, NUMBERS, lambda torch: torch.nn.MSELoss()),
        ("regress", {"error": "huber"}, NUMBERS, lambda torch: torch.nn.HuberLoss()),
        ("regress", {"error": "huber"}, NUMBERS, lambda torch: torch.nn.SmoothL1Loss()),
        (
            "classify",
            {"class_weights": WEIGHTS},
            CLASSES,
            lambda torch: torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS)),
        ),
        (
            "classify",
            {"class_weights": WEIGHTS, "label_smoothing": 0.2},
            CLASSES,
            lambda torch: torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=0.2),
        ),
    ],
)
def test_losses_are_torchs(name, arguments, targets, theirs):
    assert np.abs(LOGITS - NUMBERS).min() < 1 < np.abs(LOGITS - NUMBERS).max()  # both parts of the Huber error
    value, gradient = torch_loss(theirs, targets)
    ours = targets if targets.ndim == 2 else jax.nn.one_hot(targets, 4)
    loss, slope = loss_of(create_objective(name, Given(), **arguments), ours)
    np.testing.assert_allclose(loss, value, rtol=2e-6)
    np.testing.assert_allclose(slope, gradient, rtol=1e-5, atol=1e-7)


def test_label_smoothing_moves_labels_towards_a_half():
    smoothed = lambda torch: lambda x, t: torch.nn.BCEWithLogitsLoss()(x, 0.8 * t + 0.1)
    value, _ = torch_loss(smoothed, LABELS)
    loss, _ = loss_of(create_objective("multilabel", Given(), label_smoothing=0.2), LABELS)
    np.testing.assert_allclose(loss, value, rtol=2e-6)


def test_class_weights_by_hand():
    """Two images of class 0 and one of class 1, each with probability 1/4 for class 0."""
    logits = np.log(np.array([[1, 3]] * 3, np.float32) / 4)
    objective = Classify(Given(), class_weights=(3.0, 1.0))
    loss, _ = loss_of(objective, [[1, 0], [1, 0], [0, 1]], logits)
    worked = (3 * np.log(4) + 3 * np.log(4) + np.log(4 / 3)) / (3 + 3 + 1)
    np.testing.assert_allclose(loss, worked, rtol=1e-6)

    params, extras = objective.init(jax.random.key(0), jnp.asarray(logits))
    batch = {"image": jnp.asarray(logits), "target": jnp.asarray([[1.0, 0], [1, 0], [0, 1]])}
    evaluated = objective.evaluate(params, extras, batch)["loss"]  # without weights
    np.testing.assert_allclose(evaluated, np.log([4, 4, 4 / 3]), rtol=1e-6)


def test_slices_of_a_batch_share_its_mean_weight():
    """Otherwise gradient accumulation would train on another loss."""
    objective, targets = Classify(Given(), class_weights=WEIGHTS), jax.nn.one_hot(CLASSES, 4)
    params, extras = objective.init(jax.random.key(0), jnp.asarray(LOGITS))
    whole = objective.with_totals({"image": jnp.asarray(LOGITS), "target": targets})
    of = lambda rows: objective.loss(params, extras, jax.tree.map(lambda x: x[rows], whole), {}, True)[0]
    np.testing.assert_allclose((of(slice(0, 3)) + of(slice(3, 6))) / 2, loss_of(objective, targets)[0], rtol=1e-6)
    alone = objective.loss(params, extras, {"image": LOGITS[:3], "target": targets[:3]}, {}, True)[0]
    assert abs(alone - of(slice(0, 3))) > 0.01


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("multilabel", {"label_smoothing": 1.0}, "label_smoothing=1.0: expected at least 0 and below 1"),
        ("multilabel", {"class_weights": (1.0, 0.0)}, r"class_weights=\(1.0, 0.0\): expected positive numbers"),
        ("classify", {"class_weights": (1.0, -1.0)}, r"class_weights=\(1.0, -1.0\): expected positive numbers"),
        ("classify", {"class_weights": (1.0,), "cross_entropy": "sigmoid"}, "expected 'softmax', for class_weights"),
        ("regress", {"error": "mae"}, "error='mae': expected one of"),
    ],
)
def test_invalid_arguments(name, arguments, said):
    with pytest.raises(ValueError, match=said):
        create_objective(name, Given(), **arguments)
