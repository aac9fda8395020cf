"""Distillation through attention (DeiT): a distillation token, with its own head, learns from a teacher.

Source: Touvron et al. 2020 (DeiT), arXiv:2012.12877; soft loss: Hinton et al. 2015, arXiv:1503.02531.
Upstream: `DistillWrapper` in vit_pytorch/distill.py.
Differs from upstream: most ViT variants can be students (upstream: ViT; its T2TViT and EfficientViT crash); the token
starts at a standard deviation of 0.02 (upstream: 1).
Axes: b batch, n tokens, d dim, k classes.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import one_of
from vit_jax.layers.dense import Dense
from vit_jax.layers.head import NormHead
from vit_jax.objectives.classify import CROSS_ENTROPY, check_loss, correct, learned_targets, with_mean_weight
from vit_jax.objectives.protocol import Classifier, Tree
from vit_jax.objectives.supervised import headless, split_outputs


def is_distillable(model: nn.Module | type) -> bool:
    """Whether a model, or its class, takes a distillation token: it has `head`, and `encode` has `extra_tokens`."""
    encode = getattr(model, "encode", None)
    return hasattr(model, "head") and encode is not None and "extra_tokens" in inspect.signature(encode).parameters


class Distilled(nn.Module):
    """A student with a distillation token: image (b, H, W, c) to the logits (b, k) of the class and distillation heads.

    The student's own parameters are `variables["params"]["student"]`.

    Args:
        student: a model with `dim`, `num_classes`, `head`, and a method `encode` that takes extra tokens and returns
            them last: ViT, T2TViT, EfficientViT, and most variants of ViT and SimpleViT (`is_distillable`).
        mlp_layernorm: put a norm into the distillation head.

    Raises:
        ValueError: for another student, or a student without classes.
    """

    student: nn.Module
    mlp_layernorm: bool = False

    def __post_init__(self):
        if not is_distillable(self.student):
            raise ValueError(
                f"student={type(self.student).__name__}: expected a model whose `encode` takes extra tokens, such as "
                "vit, t2t, efficient, deepvit or simple_vit"
            )
        if not self.student.num_classes:
            raise ValueError("student.num_classes=0: expected a classifier")
        super().__post_init__()

    def setup(self):
        head = NormHead if self.mlp_layernorm else Dense
        self.distill_mlp = head(self.student.num_classes)
        self.distillation_token = self.param("distillation_token", nn.initializers.normal(0.02), (1, self.student.dim))

    def __call__(
        self, images: Float[Array, "b H W c"], *, train: bool = False
    ) -> tuple[Float[Array, "b k"], Float[Array, "b k"]]:
        tokens = self.student.encode(images, self.distillation_token, train=train)
        return self.student.head(tokens[:, :-1]), self.distill_mlp(tokens[:, -1])

    torch_rules = (
        ("distill_mlp/norm", "distill_mlp.0"),
        ("distill_mlp/fc", "distill_mlp.1"),
        ("distill_mlp", "distill_mlp.1"),
    )


def soft_distillation(
    student: Float[Array, "b k"], teacher: Float[Array, "b k"], temperature: float
) -> Float[Array, ""]:
    """Return KL(teacher || student) at this temperature, times temperature squared, in float32; the mean over b."""
    log_p = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    log_q = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1).mean() * temperature**2


def hard_distillation(student: Float[Array, "b k"], teacher: Float[Array, "b k"]) -> Float[Array, ""]:
    """Return the cross-entropy with the teacher's most probable class, the mean over b."""
    labels = jax.nn.one_hot(teacher.argmax(axis=-1), teacher.shape[-1])
    return CROSS_ENTROPY["softmax"](student, labels).mean()


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen network that gets the student's images in the normalisation and size of its own training.

    `Teacher(network)` gets them as they are. Images of one channel become images of three, if `mean` has three values.

    Args:
        network: the teacher.
        mean: mean of each channel, of pixels in 0..1, in the teacher's normalisation.
        std: standard deviation of each channel, likewise.
        student_mean: mean of each channel in the student's normalisation.
        student_std: standard deviation of each channel, likewise.
        image_size: (height, width) to which images are resized, or None to keep their size.
        interpolation: a method of `jax.image.resize`.
        order: the teacher's class index for each class of the student; None if they are the same.
    """

    network: nn.Module
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    student_mean: tuple[float, ...] = (0.0,)
    student_std: tuple[float, ...] = (1.0,)
    image_size: tuple[int, int] | None = None
    interpolation: str = "bicubic"
    order: tuple[int, ...] | None = None

    def apply(self, variables: Tree, images: Float[Array, "b H W c"]) -> Float[Array, "b k"]:
        """Return the network's logits in evaluation mode, in the order of the student's classes."""
        logits = split_outputs(self.network.apply(variables, self.seen(images))).main
        return logits if self.order is None else logits[:, jnp.asarray(self.order)]

    def seen(self, images: Float[Array, "b H W c"]) -> Float[Array, "b h w d"]:
        """Return what the network sees of the student's images."""
        if (self.mean, self.std) != (self.student_mean, self.student_std):
            per_channel = lambda values: jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1)
            pixels = images * per_channel(self.student_std) + per_channel(self.student_mean)
            images = (pixels - per_channel(self.mean)) / per_channel(self.std)
        if self.image_size is not None and self.image_size != images.shape[1:3]:
            shape = (len(images), *self.image_size, images.shape[-1])
            images = jax.image.resize(images, shape, self.interpolation).astype(images.dtype)
        return images


@dataclasses.dataclass(frozen=True)
class Distill(Classifier):
    """(1 - alpha) times the class head's cross-entropy, plus alpha times the distillation head's loss.

    Args:
        student: a model that takes a distillation token (`is_distillable`).
        teacher: a Flax module or a `Teacher`; `teacher.apply(extras["teacher"], images)` returns logits (b, k). It may
            be None for prediction, or if batches contain the teacher's logits as "teacher".
        temperature: divisor of the logits in the soft loss.
        alpha: weight of the distillation loss, 0 to 1.
        hard: learn the teacher's most probable class (cross-entropy) instead of its distribution (KL divergence).
        mlp_layernorm: put a norm into the distillation head.
        head: logits for prediction: "class", "distill", or "mean" of both, as in DeiT's code.
        cross_entropy: "softmax" or "sigmoid".
        label_smoothing: as in `Classify`.
        class_weights: as in `Classify`, for the loss on labels.

    Raises:
        ValueError: for invalid values.
    """

    trunk_path: ClassVar[tuple[str, ...]] = ("student",)

    student: nn.Module
    teacher: nn.Module | Teacher | None
    temperature: float = 1.0
    alpha: float = 0.5
    hard: bool = False
    mlp_layernorm: bool = False
    head: str = "mean"
    cross_entropy: str = "softmax"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self):
        check_loss(self.cross_entropy, self.label_smoothing, self.class_weights)
        one_of("head", self.head, ("class", "distill", "mean"))
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: expected more than 0")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}: expected 0 to 1")

    @property
    def model(self) -> Distilled:
        return Distilled(self.student, self.mlp_layernorm)

    def init(self, key: Array, images: Array) -> tuple[Tree, Tree]:
        variables = dict(self.model.init(key, images))
        return variables.pop("params"), variables

    def loss(
        self, params: Tree, extras: Tree, batch: Tree, rngs: Mapping[str, Array], train: bool
    ) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        own = {name: value for name, value in extras.items() if name != "teacher"}
        (class_logits, distill_logits), own = self.model.apply(
            {"params": params, **own},
            batch["image"],
            train=train,
            rngs=rngs,
            mutable=list(own) if train else [],
        )
        if "teacher" in batch:
            teacher_logits = batch["teacher"]
        else:
            teacher_logits = jax.lax.stop_gradient(self.teacher.apply(extras["teacher"], batch["image"]))
        targets = learned_targets(batch, self.label_smoothing, self.class_weights)
        label_loss = CROSS_ENTROPY[self.cross_entropy](class_logits, targets).mean()
        if self.hard:
            teacher_loss = hard_distillation(distill_logits, teacher_logits)
        else:
            teacher_loss = soft_distillation(distill_logits, teacher_logits, self.temperature)
        loss = (1 - self.alpha) * label_loss + self.alpha * teacher_loss
        metrics = {
            "loss": loss,
            "label_loss": label_loss,
            "teacher_loss": teacher_loss,
            "accuracy": correct(_with_mean(class_logits, distill_logits)[self.head], batch["target"]).mean(),
        }
        return loss, (metrics, own)

    def with_totals(self, batch: Tree) -> Tree:
        return with_mean_weight(batch, self.class_weights)

    def predict(self, params: Tree, extras: Tree, images: Array) -> Float[Array, "b k"]:
        return self._heads(params, extras, images)[self.head]

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        heads = self._heads(params, extras, batch["image"])
        metrics = {
            "loss": CROSS_ENTROPY[self.cross_entropy](heads[self.head], batch["target"]),
            "accuracy": correct(heads[self.head], batch["target"]),
        }
        return metrics | {f"accuracy_{name}": correct(logits, batch["target"]) for name, logits in heads.items()}

    def trunk(self, params: Tree, extras: Tree) -> tuple[nn.Module, Tree]:
        return headless(self.student), {name: tree["student"] for name, tree in {"params": params, **extras}.items()}

    def _heads(self, params: Tree, extras: Tree, images: Array) -> dict[str, Array]:
        own = {name: value for name, value in extras.items() if name != "teacher"}
        return _with_mean(*self.model.apply({"params": params, **own}, images))


def _with_mean(class_logits: Array, distill_logits: Array) -> dict[str, Array]:
    """Logits by the names of the argument `head`."""
    return {"class": class_logits, "distill": distill_logits, "mean": (class_logits + distill_logits) / 2}
