"""Distillation of features: a learned linear map of the student's features predicts those of a frozen teacher.

Source: Romero et al. 2014 (FitNets), arXiv:1412.6550, for the map from the student's width to the teacher's; Wei et al.
2022, arXiv:2205.14141, for the loss: smooth L1 against normalised features of the last layer.
Axes: b batch, h rows and w columns of a map, d features of the student, e features of the teacher, k classes.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import one_of
from vit_jax.layers.dense import Dense
from vit_jax.layers.norm import standardize
from vit_jax.layers.shapes import Images, Output
from vit_jax.objectives.classify import Classify
from vit_jax.objectives.distill import Distill, Teacher
from vit_jax.objectives.features import patch_map, pooled
from vit_jax.objectives.protocol import Tree
from vit_jax.objectives.supervised import headless

FEATURES = ("tokens", "pooled")
BETA = 2.0  # of the smooth L1 loss, as in Wei et al.


def feature_loss(student: Float[Array, "*b e"], teacher: Float[Array, "*b e"]) -> Float[Array, ""]:
    """Return the mean smooth L1 loss in float32: d^2 / (2 BETA) for differences d below BETA, otherwise d - BETA / 2.

    The teacher's features are normalised to mean 0 and variance 1 over the last axis, the student's are not.
    """
    difference = jnp.abs(student.astype(jnp.float32) - standardize(teacher, 1e-5))
    return jnp.where(difference < BETA, difference**2 / (2 * BETA), difference - BETA / 2).mean()


def feature_dim(teacher: Teacher, features: str, images: Images) -> int:
    """Return the width of a teacher's features. `images` of the student are used only for their shape."""
    variables = jax.eval_shape(lambda images: teacher.network.init(jax.random.key(0), teacher.seen(images)), images)
    learned = lambda variables, images: teacher_outputs(teacher, variables, images, features, logits=False)[0]
    return jax.eval_shape(learned, variables, images).shape[-1]


def teacher_outputs(
    teacher: Teacher, variables: Tree, images: Images, features: str, *, logits: bool
) -> tuple[Float[Array, "b *h e"], Float[Array, "b k"] | None]:
    """Return a teacher's features and, if `logits`, its logits, from one run of the network."""
    with passed_to_head() as tokens:
        of_head = teacher.apply(variables, images) if logits else None
    trunk, seen = headless(teacher.network), teacher.seen(images)
    outputs = tokens[0] if tokens else trunk.apply(variables, seen)
    return features_of(trunk, variables, outputs, features, seen.shape[1:3]), of_head


def features_of(
    trunk: nn.Module, variables: Tree, outputs: Any, features: str, image_size: tuple[int, int]
) -> Float[Array, "b *h d"]:
    """Return maps (b, h, w, d) or pooled features (b, d) from the outputs of a model without its head."""
    if features == "tokens":
        return patch_map(trunk, outputs, image_size)
    if hasattr(trunk, "pooled"):  # it may pool by attention
        return trunk.apply(variables, outputs, method="pooled")
    return pooled(trunk, outputs)


@contextlib.contextmanager
def passed_to_head(*path: str) -> Iterator[list[Array]]:
    """Context that lists the tokens which the module at `path` passes to its own method `head`, if it has one.

    So features and logits come from one run, whose backward pass a second run would double.
    """
    tokens = []

    def watch(call, args, kwargs, context):
        if context.method_name == "head" and context.module.scope is not None and context.module.path == path:
            tokens.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        yield tokens


class Undistilled(nn.Module):
    """A student without distillation token, with the parameters that it has in `Distilled`: images to logits."""

    student: nn.Module

    @property
    def loss_keywords(self) -> Mapping[str, bool]:
        """The student's; see `Supervised`."""
        return getattr(self.student, "loss_keywords", {})

    def __call__(self, images: Images, *, train: bool = False, **keywords: bool) -> Output | tuple:
        return self.student(images, train=train, **keywords)


@dataclasses.dataclass(frozen=True)
class FeatureDistill(Distill):
    """The loss on labels, plus `feature_weight` times the loss between projected features and the teacher's.

    The projection is linear. Its parameters are `params["projection"]`, which is no part of the trunk. Beside features,
    a student with a distillation token can learn from the teacher's logits, as in `Distill`.

    Args:
        student: any classifier; with `alpha` above 0 one that takes a distillation token.
        teacher: the teacher, with its variables as extras["teacher"]. It may be None for prediction.
        features: "tokens" for the last tokens of all patches or the last map, "pooled" for one vector per image. If the
            teacher has another number of patches, its map is resized to that of the student, bilinearly.
        feature_weight: weight of the loss of features.
        feature_dim: width of the teacher's features; by default found from the teacher.
        alpha: weight of the loss of logits, 0 to 1; 0 for no distillation token.
        temperature: as `hard`, `mlp_layernorm` and `head`, used with `alpha` above 0; see `Distill`.
        cross_entropy: "softmax" or "sigmoid".
        label_smoothing: as in `Classify`.
        class_weights: as in `Classify`.
        auxiliary_weight: as in `Classify`, used with `alpha=0`.

    Raises:
        ValueError: for invalid values, and for a student or teacher without such features.
    """

    alpha: float = 0.0
    features: str = "tokens"
    feature_weight: float = 1.0
    feature_dim: int | None = None
    auxiliary_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        one_of("features", self.features, FEATURES)
        if self.feature_weight < 0:
            raise ValueError(f"feature_weight={self.feature_weight}: expected at least 0")
        if not self.alpha:
            object.__setattr__(self, "head", "class")

    @property
    def base(self) -> Classify | Distill:
        """The objective without features."""
        if not self.alpha:
            student = Undistilled(self.student)
            loss = (self.cross_entropy, self.label_smoothing, self.auxiliary_weight, self.class_weights)
            return Classify(student, *loss)
        return Distill(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Distill)})

    @property
    def model(self) -> nn.Module:
        return self.base.model

    def init(self, key: Array, images: Array) -> tuple[Tree, Tree]:
        params, extras = super().init(key, images)
        trunk, variables = self.trunk(params, extras)

        def run(variables, images):  # in training, in which some models leave out patches
            outputs, _ = trunk.apply(variables, images, train=True, rngs={"dropout": key}, mutable=True)
            return self._features(trunk, variables, outputs, images)

        student = jax.eval_shape(run, variables, images)
        if self.teacher is None and self.feature_dim is None:
            raise ValueError("feature_dim=None: expected the width of the teacher's features, or a teacher")
        width = self.feature_dim or feature_dim(self.teacher, self.features, images)
        projection = Dense(width).init(jax.random.fold_in(key, 1), jnp.zeros((1, student.shape[-1])))
        return {**params, "projection": projection["params"]}, extras

    def loss(
        self, params: Tree, extras: Tree, batch: Tree, rngs: Mapping[str, Array], train: bool
    ) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        images, own = batch["image"], {name: value for name, value in extras.items() if name != "teacher"}
        teacher = teacher_outputs(self.teacher, extras["teacher"], images, self.features, logits=self.alpha > 0)
        target, logits = jax.lax.stop_gradient(teacher)
        with passed_to_head("student") as tokens:
            loss, (metrics, kept) = self.base.loss(params, own, {**batch, "teacher": logits}, rngs, train)

        trunk, variables = self.trunk(params, own)
        if tokens:
            outputs = tokens[0]
        else:  # with the paths, and thus the dropout, of the first run
            run, mutable = Undistilled(trunk).apply, list(own) if train else []
            outputs, _ = run({"params": params, **own}, images, train=train, rngs=rngs, mutable=mutable)
        student = self._features(trunk, variables, outputs, images)
        if student.shape[:-1] != target.shape[:-1]:
            shape = (*student.shape[:-1], target.shape[-1])
            target = jax.image.resize(target, shape, "bilinear")
        projected = Dense(target.shape[-1]).apply({"params": params["projection"]}, student)
        of_features = feature_loss(projected, target)
        total = loss + self.feature_weight * of_features
        return total, ({"label_loss": loss, **metrics, "feature_loss": of_features, "loss": total}, kept)

    def predict(self, params: Tree, extras: Tree, images: Array) -> Float[Array, "b k"]:
        return self.base.predict(params, extras, images)

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        return self.base.evaluate(params, extras, batch)

    def _features(self, trunk: nn.Module, variables: Tree, outputs: Any, images: Images) -> Array:
        return features_of(trunk, variables, outputs, self.features, images.shape[1:3])
