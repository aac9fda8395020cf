"""Losses against torch and against upstream's DistillWrapper: values and gradients."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import vit_jax
from tests.cases import CASES, FIRST, IMAGE_CLASSIFIERS
from tests.cases.case import BLOCKS, IMAGE, build, build_upstream
from tests.objectives.starts import started
from tests.test_models import variables_of
from vit_jax import create_model
from vit_jax.convert import from_torch, to_torch
from vit_jax.models.distill import DistillableViT
from vit_jax.objectives.classify import Classify, correct, sigmoid_cross_entropy, smooth_labels, softmax_cross_entropy
from vit_jax.objectives.distill import (
    Distill,
    Distilled,
    Teacher,
    hard_distillation,
    is_distillable,
    soft_distillation,
)

ROWS = {str(case): case for case in CASES}
RNG = np.random.default_rng(0)
LOGITS, OTHERS = (jnp.asarray(RNG.standard_normal((4, 5), np.float32) * 3) for _ in range(2))
LABELS = np.array([1, 4, 0, 1])
HARD = jnp.asarray(np.eye(5, dtype=np.float32)[LABELS])
SOFT = jnp.asarray(RNG.dirichlet(np.ones(5), 4).astype(np.float32))
IMAGES = jnp.asarray(RNG.standard_normal((4, 16, 16, 3), np.float32))
BATCH = {"image": IMAGES, "target": HARD}


# Cross-entropies.


def test_cross_entropies_by_hand():
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0]]))
    np.testing.assert_allclose(softmax_cross_entropy(logits, jnp.array([[0.0, 0.0, 1.0]])), [np.log(8 / 5)], rtol=1e-6)
    np.testing.assert_allclose(
        softmax_cross_entropy(logits, jnp.array([[0.5, 0.5, 0.0]])), [np.log(8) - 0.5 * np.log(2)], rtol=1e-6
    )
    expected = np.log(2) + np.log(3) + np.log(6 / 5)  # sigmoids 1/2, 2/3, 5/6; classes 1 and 2 are absent
    np.testing.assert_allclose(sigmoid_cross_entropy(logits, jnp.array([[0.0, 0.0, 1.0]])), [expected], rtol=1e-6)
    np.testing.assert_allclose(smooth_labels(jnp.array([[0.0, 1.0]]), 0.1), [[0.05, 0.95]], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [HARD, SOFT], ids=["hard", "soft"])
def test_cross_entropies_equal_torchs(targets, smoothing):
    torch = pytest.importorskip("torch")
    logits, soft = torch.from_numpy(np.array(LOGITS)), torch.from_numpy(np.array(targets))
    theirs = torch.nn.functional.cross_entropy(logits, soft, reduction="none", label_smoothing=smoothing)
    smoothed = smooth_labels(targets, smoothing)
    np.testing.assert_allclose(softmax_cross_entropy(LOGITS, smoothed), theirs, rtol=1e-5)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(np.array(smoothed)), reduction="none"
    )
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, smoothed), theirs.sum(1), rtol=1e-5)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_cross_entropies_are_float32_and_finite(loss):
    out = loss(jnp.array([[300.0, -300.0, 0.0]], jnp.bfloat16), jnp.array([[0.0, 1.0, 0.0]]))
    assert out.dtype == jnp.float32
    assert jnp.isfinite(out).all()
    assert float(out[0]) >= 300


def test_correct_counts_the_largest():
    logits = jnp.array([[1.0, 3.0, 2.0], [5.0, 1.0, 1.0]])
    np.testing.assert_array_equal(correct(logits, jnp.array([[0.1, 0.5, 0.4], [0.3, 0.3, 0.4]])), [1.0, 0.0])


class Linear(nn.Module):
    """A classifier with batch statistics and dropout."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x.mean((1, 2)))
        return nn.Dense(5)(nn.Dropout(0.5)(x, deterministic=not train))


@pytest.mark.parametrize("cross_entropy", ["softmax", "sigmoid"])
def test_classify(cross_entropy):
    function = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}[cross_entropy]
    objective = Classify(Linear(), cross_entropy, label_smoothing=0.1)
    params, extras = objective.init(jax.random.key(0), IMAGES)
    assert (set(params), set(extras)) == ({"BatchNorm_0", "Dense_0"}, {"batch_stats"})
    logits = Linear().apply({"params": params, **extras}, IMAGES)
    np.testing.assert_array_equal(objective.predict(params, extras, IMAGES), logits)

    loss, (metrics, kept) = objective.loss(params, extras, BATCH, {}, train=False)
    np.testing.assert_allclose(loss, function(logits, smooth_labels(HARD, 0.1)).mean(), rtol=1e-6)
    assert metrics["loss"] == loss
    assert metrics["accuracy"] == correct(logits, HARD).mean()
    assert not kept  # evaluation changes nothing

    _, (_, moved) = objective.loss(params, extras, BATCH, {"dropout": jax.random.key(0)}, train=True)
    mean = moved["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, IMAGES.mean((0, 1, 2)) / 2, rtol=1e-4)

    evaluated = objective.evaluate(params, extras, BATCH)  # of each example, without smoothing
    np.testing.assert_allclose(evaluated["loss"], function(logits, HARD), rtol=1e-6)
    np.testing.assert_array_equal(evaluated["accuracy"], correct(logits, HARD))


class Pair(nn.Module):
    """A classifier that returns logits and an auxiliary loss."""

    @nn.compact
    def __call__(self, x, *, train=False):
        logits = nn.Dense(5)(x.mean((1, 2)))
        return logits, jnp.square(logits).mean()


def test_an_auxiliary_loss_is_added():
    alone, weighed = Classify(Pair(), auxiliary_weight=0.0), Classify(Pair(), auxiliary_weight=3.0)
    params, extras = alone.init(jax.random.key(0), IMAGES)
    logits, auxiliary = Pair().apply({"params": params}, IMAGES)
    np.testing.assert_array_equal(weighed.predict(params, extras, IMAGES), logits)
    losses = [objective.loss(params, extras, BATCH, {}, train=True)[0] for objective in (alone, weighed)]
    np.testing.assert_allclose(losses[0], softmax_cross_entropy(logits, HARD).mean(), rtol=1e-6)
    np.testing.assert_allclose(losses[1] - losses[0], 3 * auxiliary, rtol=1e-5)
    np.testing.assert_allclose(
        weighed.evaluate(params, extras, BATCH)["loss"], softmax_cross_entropy(logits, HARD), rtol=1e-6
    )


# Distillation.


def test_distillation_losses_by_hand():
    teacher, student = jnp.log(jnp.array([[1.0, 3.0]])), jnp.zeros((1, 2))
    kl = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    np.testing.assert_allclose(soft_distillation(student, teacher, 1.0), kl, rtol=1e-5)
    np.testing.assert_allclose(soft_distillation(student, 2 * teacher, 2.0), 4 * kl, rtol=1e-5)
    np.testing.assert_allclose(hard_distillation(student, teacher), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(soft_distillation(LOGITS, LOGITS, 3.0), 0, atol=1e-6)


def upstream_wrapper(student: str, **kwargs):
    """Upstream's wrapper of the model of the row `student`, with a ViT as teacher and perturbed parameters."""
    from tests.cases.distill import token_parameters
    from tests.upstream import shake

    upstream = importlib.import_module("vit_pytorch.distill")
    name = {"t2t": "DistillableT2TViT", "efficient": "DistillableEfficientViT"}.get(student.partition("-")[0])
    if name:
        inner = {k: build_upstream(v) if hasattr(v, "upstream") else v for k, v in ROWS[student].kwargs.items()}
        twin = token_parameters(getattr(upstream, name))(**inner)
    else:
        twin = build_upstream(ROWS[student])
    teacher = build_upstream(ROWS["vit-mean"])
    return shake(upstream.DistillWrapper(student=twin, teacher=teacher, **kwargs))


def split(state: dict, student) -> tuple[dict, dict]:
    """Split the wrapper's state dict into those of `Distilled` and the teacher, undoing the repair of class tokens."""
    own = {key: value for key, value in state.items() if not key.startswith("teacher.")}
    if not isinstance(student, vit_jax.ViT | DistillableViT):
        own |= {key: own[key][None] for key in ("student.cls_token", "student.pos_embedding")}
    return own, {key.removeprefix("teacher."): value for key, value in state.items() if key.startswith("teacher.")}


WRAPPERS = [
    ("distill:DistillableViT", dict(temperature=3.0, alpha=0.3)),
    ("distill:DistillableViT", dict(temperature=2.0, alpha=0.8, mlp_layernorm=True)),
    ("distill:DistillableViT", dict(hard=True)),
    ("t2t", dict(temperature=3.0, alpha=0.3)),
    ("efficient-mean", dict(hard=True, mlp_layernorm=True)),
]


@pytest.mark.parametrize(("student", "kwargs"), WRAPPERS, ids=str)
def test_loss_and_gradients_equal_upstreams(student, kwargs):
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first

    wrapper, model, teacher = upstream_wrapper(student, **kwargs), build(ROWS[student]), build(ROWS["vit-mean"])
    objective = Distill(model, teacher, **kwargs)
    own, teachers = split(wrapper.state_dict(), model)
    params = from_torch(objective.model, own, IMAGES)["params"]
    extras = {"teacher": from_torch(teacher, teachers, IMAGES)}

    expected = wrapper(channels_first(np.array(IMAGES)), torch.from_numpy(LABELS))
    expected.backward()
    loss = jax.jit(jax.value_and_grad(lambda params: objective.loss(params, extras, BATCH, {}, train=False)[0]))
    value, gradients = loss(params)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    expected, _ = split({key: p.grad for key, p in wrapper.named_parameters() if p.grad is not None}, model)
    ours = to_torch(objective.model, {"params": gradients})
    assert ours.keys() == expected.keys()
    for key, gradient in ours.items():
        error = np.abs(gradient - expected[key].numpy()).max() / np.abs(expected[key].numpy()).max()
        assert error <= 1e-5, key


@functools.cache
def distillation(**kwargs):
    """An objective whose teacher is another model than the student, and initial parameters."""
    student = create_model("vit", **IMAGE, **BLOCKS)
    teacher = create_model("simple_vit", **IMAGE, **BLOCKS)
    objective = Distill(student, teacher, **kwargs)
    params, extras = started(objective, IMAGES)
    assert not extras
    return objective, params, {"teacher": variables_of(teacher, IMAGES, {})}


def test_the_student_is_a_plain_vit():
    """Its parameters can be used without the distillation token."""
    objective, params, _ = distillation(head="class")
    student, distillable = objective.student, create_model("distill:DistillableViT", **IMAGE, **BLOCKS)
    objectives = [distillation(head=name)[0] for name in ("class", "distill", "mean")]

    @jax.jit
    def run(params):
        own, token = {"params": params["student"]}, params["distillation_token"]
        head = student.apply(own, student.apply(own, IMAGES, method="encode"), method="head")
        heads = [objective.predict(params, {}, IMAGES) for objective in objectives]
        return head, student.apply(own, IMAGES), distillable.apply(own, IMAGES, distill_token=token), heads

    head, logits, (with_token, token), (of_class, of_token, mean) = run(params)
    np.testing.assert_array_equal(head, logits)
    assert jax.tree.map(jnp.shape, params["student"]) == jax.tree.map(
        jnp.shape, jax.eval_shape(student.init, jax.random.key(0), IMAGES)["params"]
    )
    np.testing.assert_allclose(of_class, with_token, atol=1e-6)
    mlp = params["distill_mlp"]
    expected = np.asarray(token) @ mlp["kernel"] + mlp["bias"][None]
    np.testing.assert_allclose(of_token, expected, atol=1e-5)
    np.testing.assert_allclose(mean, (with_token + expected) / 2, atol=1e-5)


def test_the_teacher_is_left_alone():
    objective, params, extras = distillation()

    def loss(params, extras):
        return objective.loss(params, extras, BATCH, {}, train=True)

    (_, (metrics, kept)), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, extras)
    assert "teacher" not in kept
    assert set(metrics) == {"loss", "label_loss", "teacher_loss", "accuracy"}
    assert metrics["loss"] == pytest.approx(float(metrics["label_loss"] + metrics["teacher_loss"]) / 2, rel=1e-6)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients[0]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients[1]))


def test_accuracy_is_that_of_the_prediction():
    objectives = {head: distillation(head=head)[0] for head in ("class", "distill", "mean")}
    _, params, extras = distillation(head="mean")

    @jax.jit
    def run(params, extras):
        def of(objective):
            _, (metrics, _) = objective.loss(params, extras, BATCH, {}, train=False)
            logits = objective.predict(params, extras, IMAGES)
            return logits, metrics["accuracy"], objective.evaluate(params, extras, BATCH)

        return {head: of(objective) for head, objective in objectives.items()}

    every = run(params, extras)
    for logits, accuracy, evaluated in every.values():
        assert accuracy == correct(logits, HARD).mean()
        np.testing.assert_allclose(evaluated["loss"], softmax_cross_entropy(logits, HARD), rtol=1e-5)
        np.testing.assert_array_equal(evaluated["accuracy"], correct(logits, HARD))
        for name in objectives:
            np.testing.assert_array_equal(evaluated[f"accuracy_{name}"], correct(every[name][0], HARD))


def test_a_batch_may_bring_the_teachers_logits():
    objective, params, extras = distillation()

    @jax.jit
    def run(params, extras):
        batch = BATCH | {"teacher": objective.teacher.apply(extras["teacher"], IMAGES)}
        loss, _ = dataclasses.replace(objective, teacher=None).loss(params, {}, batch, {}, train=False)
        return loss, objective.loss(params, extras, BATCH, {}, train=False)[0]

    np.testing.assert_allclose(*run(params, extras), rtol=1e-6)


class Pixels(nn.Module):
    """A network whose logits are the pixels of its input."""

    @nn.compact
    def __call__(self, images):
        return images.reshape(len(images), -1)


def test_a_teacher_gets_images_as_it_learned_to_see_them():
    pixels = jax.random.uniform(jax.random.key(0), (2, 4, 6, 3))
    channels = lambda values: jnp.array(values).reshape(1, 1, 1, 3)
    own, students = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    images = (pixels - channels(students[0])) / channels(students[1])
    expected = (pixels - channels(own[0])) / channels(own[1])
    seen = Teacher(Pixels(), *own, *students).apply({}, images)
    np.testing.assert_allclose(seen, expected.reshape(2, -1), atol=1e-5)
    assert Teacher(Pixels(), *own, *students, image_size=(8, 8)).apply({}, images).shape == (2, 8 * 8 * 3)
    flat = Teacher(Pixels(), *own, *students, image_size=(8, 8)).apply({}, jnp.ones_like(images))
    np.testing.assert_allclose(
        flat.reshape(2, 64, 3), jnp.broadcast_to(flat.reshape(2, 64, 3)[:1, :1], (2, 64, 3)), atol=1e-5
    )


def test_every_plain_model_takes_a_distillation_token():
    students = [name for name in IMAGE_CLASSIFIERS if is_distillable(build(FIRST[name]))]
    assert {"vit", "t2t", "efficient", "deepvit", "simple_vit", "vit_with_decorr", "jumbo_vit"} <= set(students)
    assert not {"cait", "local_vit", "max_vit", "ats_vit"} & set(students)
    for name in students:
        images = jnp.zeros(FIRST[name].input_shape)
        logits, _ = jax.eval_shape(Distilled(build(FIRST[name])).init_with_output, jax.random.key(0), images)
        assert [out.shape for out in logits] == [(len(images), FIRST[name].kwargs["num_classes"])] * 2, name


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(cross_entropy="mse"), "cross_entropy='mse': expected one of 'softmax', 'sigmoid'"),
        (dict(label_smoothing=1.0), "label_smoothing=1.0: expected at least 0 and below 1"),
        (dict(label_smoothing=-0.1), "label_smoothing=-0.1: expected"),
        (dict(temperature=0.0), "temperature=0.0: expected more than 0"),
        (dict(alpha=1.5), "alpha=1.5: expected 0 to 1"),
        (dict(head="token"), "head='token': expected one of 'class', 'distill', 'mean'"),
    ],
)
def test_bad_values_are_named(kwargs, message):
    vit = build(ROWS["vit"])
    with pytest.raises(ValueError, match=message):
        Distill(vit, vit, **kwargs)
    if set(kwargs) <= {"cross_entropy", "label_smoothing"}:
        with pytest.raises(ValueError, match=message):
            Classify(vit, **kwargs)


def test_bad_students_are_named():
    with pytest.raises(ValueError, match="student=CaiT: expected a model whose `encode` takes extra tokens"):
        Distilled(build(ROWS["cait"]))
    with pytest.raises(ValueError, match=r"student.num_classes=0: expected a classifier"):
        Distilled(build(ROWS["vit"], num_classes=0))
