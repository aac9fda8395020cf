"""Distillation of features: the loss and its gradient against torch, what is learned, and which models fit."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.cases import FIRST
from tests.cases.case import IMAGE, build
from tests.objectives.starts import started
from tests.test_models import filled, variables_of
from vit_jax import capture, create_model
from vit_jax.objectives import create_objective
from vit_jax.objectives.classify import Classify
from vit_jax.objectives.distill import Distill, Teacher
from vit_jax.objectives.feature_distill import FeatureDistill, feature_loss, features_of, teacher_outputs

RNG = np.random.default_rng(0)
IMAGES = jax.device_put(RNG.standard_normal((4, 16, 16, 3), np.float32))
BATCH = {"image": IMAGES, "target": jax.device_put(np.eye(5, dtype=np.float32)[[1, 4, 0, 1]])}
SEEN = (24, 8)  # six rows and two columns of patches, of which the student has four each
WEIGHT = 3.0
STUDENT = create_model("vit", **IMAGE, dim=24, depth=1, heads=2, dim_head=8, mlp_dim=24)


def timm(name, **kwargs):
    sizes = dict(image_size=SEEN, patch_size=4, dim=32, depth=1, heads=4, mlp_dim=48, num_classes=5)
    return create_model(f"timm/{name}", **sizes | kwargs)


@functools.cache
def distilled(**kwargs):
    """An objective whose teacher has a class token and four registers, its parameters and the teacher's variables."""
    network = timm("vit_small_patch14_reg4_dinov2")
    objective = FeatureDistill(STUDENT, Teacher(network, image_size=SEEN), **kwargs)
    params, extras = started(objective, IMAGES)
    assert not extras
    return objective, params, variables_of(network, jnp.zeros((1, *SEEN, 3)), {})


def test_loss_by_hand():
    teacher = jnp.array([[11.0, 13.0], [0.5, 0.5]])  # normalised: -1, 1; 0, 0
    student = jnp.array([[0.0, 5.0], [-2.0, 1.0]])
    np.testing.assert_allclose(feature_loss(student, teacher), (1 / 4 + 3 + 1 + 1 / 4) / 4, rtol=1e-4)
    assert feature_loss(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16)).dtype == jnp.float32


def in_torch(student, teacher, projection):
    """The loss of features (b, ..., d) as the paper's code computes it, and its gradients."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    student, teacher, kernel, bias = (
        torch.tensor(np.asarray(x)) for x in (student, teacher, projection["kernel"], projection["bias"])
    )
    learned = [x.requires_grad_() for x in (student, kernel, bias)]
    if teacher.ndim == 4:
        teacher = teacher.permute(0, 3, 1, 2)
        resized = functional.interpolate(teacher, student.shape[1:3], mode="bilinear", antialias=True)
        teacher = resized.permute(0, 2, 3, 1)
    target = functional.layer_norm(teacher, teacher.shape[-1:])
    loss = functional.smooth_l1_loss(functional.linear(student, kernel.T, bias), target, beta=2.0)
    return loss.item(), *(gradient.numpy() for gradient in torch.autograd.grad(loss, learned))


@pytest.mark.parametrize(
    "kwargs", [dict(features="tokens"), dict(features="pooled", alpha=0.4, temperature=2.0)], ids=str
)
def test_loss_and_gradients_equal_torchs(kwargs):
    """With logits, features are those of the run with a distillation token."""
    objective, params, teacher = distilled(feature_weight=WEIGHT, **kwargs)
    student, network = objective.student, objective.teacher.network
    logits = {name: value for name, value in kwargs.items() if name != "features"}
    base = Distill(student, objective.teacher, **logits) if logits else Classify(student)
    own = {name: value for name, value in params.items() if name != "projection"}
    own = own if logits else params["student"]

    def features(own):
        token = (own["distillation_token"],) if logits else ()
        tokens = student.apply({"params": own["student"] if logits else own}, IMAGES, *token, method="encode")
        return tokens[:, 0] if logits else tokens[:, 1:].reshape(4, 4, 4, -1)

    @jax.jit
    def run(params, own, teacher):
        loss = lambda params, teacher: objective.loss(params, {"teacher": teacher}, BATCH, {}, train=True)
        total = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, teacher)
        of_base = jax.value_and_grad(lambda own: base.loss(own, {"teacher": teacher}, BATCH, {}, train=True)[0])(own)
        tokens = network.clone(num_classes=0).apply(teacher, objective.teacher.seen(IMAGES))
        return total, of_base, features(own), tokens[:, 0] if logits else tokens[:, 5:].reshape(4, 6, 2, -1)

    ((loss, (metrics, kept)), (gradients, of_teacher)), (base_loss, base_gradients), *both = run(params, own, teacher)
    expected, of_features, kernel, bias = in_torch(*both, params["projection"])
    np.testing.assert_allclose(metrics["feature_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(loss, base_loss + WEIGHT * expected, rtol=1e-5)
    assert metrics["loss"] == loss
    assert set(metrics) == {"loss", "label_loss", "feature_loss", "accuracy"} | ({"teacher_loss"} if logits else set())
    np.testing.assert_allclose(gradients["projection"]["kernel"], WEIGHT * kernel, atol=1e-6)
    np.testing.assert_allclose(gradients["projection"]["bias"], WEIGHT * bias, atol=1e-6)
    expected = jax.jit(lambda own, of_features: jax.vjp(features, own)[1](of_features))(own, of_features)[0]
    expected = jax.tree.map(lambda a, b: a + WEIGHT * b, base_gradients, expected)
    found = {name: value for name, value in gradients.items() if name != "projection"}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found if logits else found["student"],
        expected,
    )
    assert "teacher" not in kept
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_teacher))


def test_the_students_features_approach_the_teachers():
    """Much closer than the best features that are the same for all patches and images."""
    objective, params, teacher = distilled(features="tokens")
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        loss = lambda params: objective.loss(params, {"teacher": teacher}, BATCH, {}, train=True)
        (_, (metrics, _)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, metrics

    @jax.jit
    def constant():
        maps, _ = teacher_outputs(objective.teacher, teacher, IMAGES, "tokens", logits=False)
        target = jax.nn.standardize(jax.image.resize(maps, (4, 4, 4, 32), "bilinear"))
        return feature_loss(jnp.broadcast_to(target.mean((0, 1, 2), keepdims=True), target.shape), target)

    state, found = optimizer.init(params), []
    for _ in range(80):
        params, state, metrics = step(params, state)
        found.append(jax.device_get(metrics))
    assert found[-1]["feature_loss"] < constant() / 2 < found[0]["feature_loss"]
    assert found[-1]["loss"] < found[0]["loss"] / 5


class Mapped(nn.Module):
    """A classifier with batch statistics and dropout, which has a last map and no method `head`."""

    num_classes: int
    calls: ClassVar[list[bool]] = []  # whether each run was in training

    def setup(self):
        self.conv, self.norm, self.drop = nn.Conv(6, (4, 4), strides=4), nn.BatchNorm(momentum=0.5), nn.Dropout(0.5)
        if self.num_classes:
            self.last = nn.Dense(self.num_classes)

    def __call__(self, images, *, train=False):
        self.calls.append(train)
        x = self.drop(self.norm(self.conv(images), use_running_average=not train), deterministic=not train)
        return self.read(x) if self.num_classes else x

    def read(self, x):
        return self.last(x.mean((1, 2)))


class Headed(Mapped):
    """The same with a method `head`, so that one run is enough."""

    def read(self, x):
        return self.head(x)

    def head(self, x):
        return super().read(x)


def test_a_second_run_for_features_is_the_first():
    teacher = Teacher(Headed(5))
    objectives = [FeatureDistill(student, teacher, feature_dim=6) for student in (Mapped(5), Headed(5))]
    params, extras = started(objectives[0], IMAGES)
    extras |= {"teacher": filled(jax.eval_shape(teacher.network.init, jax.random.key(0), IMAGES))}
    Mapped.calls.clear()

    @jax.jit
    def run(params, extras):
        loss = lambda o: lambda params: o.loss(params, extras, BATCH, {"dropout": jax.random.key(0)}, train=True)
        return [jax.value_and_grad(loss(objective), has_aux=True)(params) for objective in objectives]

    first, second = run(params, extras)
    assert Mapped.calls == [False, True, True, False, True]
    assert set(first[0][1][1]) == {"batch_stats"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), first, second)


def test_one_run_of_the_teacher_gives_logits_and_features():
    teacher = Teacher(Headed(5))
    objective = FeatureDistill(STUDENT, teacher, alpha=0.5)
    params, _ = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)
    extras = {"teacher": jax.eval_shape(teacher.network.init, jax.random.key(0), IMAGES)}
    Mapped.calls.clear()
    jax.eval_shape(lambda *trees: objective.loss(*trees, BATCH, {}, train=True), params, extras)
    assert Mapped.calls == [False]


@pytest.mark.parametrize("name", ["vit_with_decorr", "vit_5", "cct", "max_vit", "jumbo_vit"])
def test_any_classifier_can_be_a_student(name):
    """With an auxiliary loss, registers, no `patch_size`, maps, batch statistics, and several class tokens."""
    case = FIRST[name]
    images = jnp.zeros(case.input_shape)
    teacher = Teacher(timm("vit_small_patch14_reg4_dinov2", num_classes=0), image_size=SEEN)
    objective = create_objective("feature_distill", build(case), teacher=teacher)
    params, extras = jax.eval_shape(objective.init, jax.random.key(0), images)
    extras["teacher"] = jax.eval_shape(teacher.network.init, jax.random.key(0), jnp.zeros((1, *SEEN, 3)))
    batch = {"image": images, "target": jnp.zeros((len(images), case.kwargs["num_classes"]))}

    def gradients(params, extras):
        rngs = {"dropout": jax.random.key(0)}
        return jax.grad(lambda params: objective.loss(params, extras, batch, rngs, train=True), has_aux=True)(params)[0]

    assert jax.eval_shape(gradients, params, extras) == params
    assert params["projection"]["kernel"].shape[1] == 32


def test_the_projection_is_neither_in_the_trunk_nor_in_predictions():
    objective, params, _ = distilled(features="tokens")
    plain = {"student": params["student"]}
    trunk, variables = objective.trunk(params, {})
    assert trunk == objective.student.clone(num_classes=0)
    assert variables == {"params": params["student"]}
    assert jax.eval_shape(lambda params: objective.predict(params, {}, IMAGES), plain).shape == (4, 5)
    metrics = jax.eval_shape(lambda params: objective.evaluate(params, {}, BATCH), plain)
    assert metrics.keys() == {"loss", "accuracy"}
    assert objective.head == "class"


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_small_patch14_reg4_dinov2"])
def test_pooled_features_are_the_input_of_the_head(name):
    model = timm(name, image_size=16)
    variables = variables_of(model, IMAGES, {})

    @jax.jit
    def both(variables):
        expected = capture.features(model, variables, IMAGES)
        return features_of(model, variables, expected.tokens, "pooled", (16, 16)), expected.pooled

    np.testing.assert_allclose(*both(variables), atol=1e-5)


@pytest.mark.parametrize(
    ("student", "kwargs", "message"),
    [
        ("vit", dict(features="maps"), "features='maps': expected one of 'tokens', 'pooled'"),
        ("vit", dict(feature_weight=-1.0), r"feature_weight=-1\.0: expected at least 0"),
        (
            "cait",
            dict(),
            r"CaiT returns features of shape \(1, 24\) for images of \(16, 16\): expected a token for each",
        ),
        ("simple_vit_with_patch_dropout", dict(), r"returns features of shape \(8, 24\) .* expected a token for each"),
        ("vit", dict(feature_dim=None), "feature_dim=None: expected the width of the teacher's features, or a teacher"),
        ("cait", dict(alpha=0.5), "student=CaiT: expected a model whose `encode` takes extra tokens"),
    ],
)
def test_what_does_not_fit_is_named(student, kwargs, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            FeatureDistill(build(FIRST[student]), None, **dict(feature_dim=3) | kwargs).init, jax.random.key(0), IMAGES
        )
