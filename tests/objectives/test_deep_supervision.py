"""Deep supervision: loss and gradient against upstream's, the gate's targets, and a run of the trainer."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases.case import INPUT, Case, build, build_upstream
from tests.cases.looped_vit import LOOPED, PLAIN
from tests.runs import records, train
from tests.test_models import variables_of
from train.main import parse
from vit_jax import create_model
from vit_jax.objectives import create_objective
from vit_jax.objectives.deep_supervision import exit_targets, loop_weights

LABELS = np.asarray([4, 1])
GATED = PLAIN | dict(adaptive_loop=True, loop_depth=3)
TWINS = [
    PLAIN,
    PLAIN | dict(loop_depth=3, deep_supervision_weighting="exponential"),
    GATED | dict(deep_supervision_weighting=(0.5, 0.0, 2.0)),
    GATED,
]


ROWS = [(kwargs, 0.1) for kwargs in TWINS] + [(GATED, 0.0)]
ROWS += [pytest.param(kwargs, 0.0, marks=pytest.mark.exhaustive) for kwargs in TWINS if kwargs is not GATED]


@pytest.mark.parametrize(
    ("kwargs", "smoothing"),
    ROWS,
    ids=lambda value: str(value.get("deep_supervision_weighting") if isinstance(value, dict) else value),
)
def test_losses_and_gradients_equal_upstreams(kwargs, smoothing):
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first, shake  # first: it lets upstream be imported
    from vit_jax.convert import from_torch, to_torch

    upstream = importlib.import_module("vit_pytorch.looped_vit")

    case = Case(*LOOPED, INPUT, 0, kwargs)
    model, twin = build(case), shake(build_upstream(case))
    images = np.random.default_rng(1).standard_normal(INPUT, np.float32)
    variables = from_torch(model, twin.state_dict(), images)
    objective = create_objective("deep_supervision", model, label_smoothing=smoothing, auxiliary_weight=0.7)
    batch = {"image": jnp.asarray(images), "target": jax.nn.one_hot(LABELS, 5)}
    step = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, {}, batch, {}, train=True), has_aux=True))
    (loss, (metrics, extras)), gradients = step(variables["params"])

    gated, labels = "adaptive_loop" in kwargs, torch.from_numpy(LABELS)
    outputs = twin(channels_first(images), return_all_logits=True, return_exit_benefits=gated)
    logits, benefits = outputs if gated else (outputs, None)
    weighting = kwargs.get("deep_supervision_weighting", "final_mean")
    expected = upstream.deep_supervision_loss(logits, labels, weighting, smoothing)
    if gated:
        targets = upstream.adaptive_exit_targets(logits, labels, smoothing)
        gate_loss = torch.nn.functional.mse_loss(benefits, targets)
        assert float(metrics["gate_loss"]) == pytest.approx(gate_loss.item(), rel=1e-5)
        expected = expected + 0.7 * gate_loss
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    assert not extras
    assert metrics["accuracy"] == np.mean(logits[-1].argmax(dim=-1).numpy() == LABELS)
    ours = to_torch(model, {"params": gradients})
    for name, parameter in twin.named_parameters():
        scale = float(parameter.grad.abs().max())
        np.testing.assert_allclose(ours[name], parameter.grad, rtol=0, atol=1e-5 * scale, err_msg=name)


def test_accuracy_is_that_of_the_last_loop():
    model = create_model("looped_vit", **PLAIN)
    images = jax.device_put(np.random.default_rng(0).standard_normal((64, *INPUT[1:]), np.float32))
    variables, objective = variables_of(model, images, {}), create_objective("deep_supervision", model)

    @jax.jit
    def run(params):
        loops = model.apply({"params": params}, images, return_all_logits=True).argmax(axis=-1)
        batch = {"image": images, "target": jax.nn.one_hot(loops[-1], 5)}
        _, (metrics, _) = objective.loss(params, {}, batch, {}, train=True)
        return loops, metrics["accuracy"], objective.evaluate(params, {}, batch)["accuracy"]

    (first, last), accuracy, of_each = run(variables["params"])
    assert np.any(first != last)
    assert accuracy == 1
    assert np.all(of_each == 1)


def test_the_gate_learns_from_the_best_of_what_is_ahead():
    losses = jnp.asarray([[3.0, 1.0], [2.5, 2.0], [1.0, 3.0]])
    np.testing.assert_allclose(exit_targets(losses), [[1.0, 0.0], [1.5, 0.0]])
    assert not np.any(jax.grad(lambda losses: exit_targets(losses).sum())(losses))


@pytest.mark.parametrize(("weighting", "expected"), [("final", [0, 0, 1]), ("exponential", [0.25, 0.5, 1])])
def test_weightings_by_name(weighting, expected):
    np.testing.assert_array_equal(loop_weights(3, weighting), expected)


@pytest.mark.parametrize("weighting", ["mean", (1.0,)])
def test_bad_weightings_are_named(weighting):
    with pytest.raises(ValueError, match=r"weighting=.*: expected"):
        loop_weights(2, weighting)


def test_a_model_without_loops_is_refused():
    model = create_model("vit/tiny", num_classes=5)
    with pytest.raises(ValueError, match="model=ViT: expected a model with loops, such as looped_vit"):
        create_objective("deep_supervision", model)


def test_a_gate_needs_two_loops():
    model = create_model("looped_vit", **GATED | dict(loop_depth=1))
    with pytest.raises(ValueError, match=r"model\.loop_depth=1: expected at least 2"):
        create_objective("deep_supervision", model)


def test_a_run_of_the_trainer(tmp_path):
    assert parse(["--objective=deep_supervision"]).model == "looped_vit"
    options = ("--objective=deep_supervision", "--epochs=1", "--batch-size=32", "--eval-batch-size=256")
    small = ("dim=16", "heads=2", "dim_head=8", "mlp_dim=32", "pre_loop_depth=1", "num_looped_blocks=1")
    loops = ("post_loop_depth=0", "loop_depth=2", "adaptive_loop=True")
    assert train(tmp_path, base=(*options, "--log-steps=2", "--model-args", *small, *loops)) == 0
    first, *_, last = records(tmp_path, "train")
    assert last["loss"] < first["loss"]
    assert {"accuracy", "gate_loss"} <= last.keys()
    assert np.isfinite(records(tmp_path, "eval")[-1]["loss"])
