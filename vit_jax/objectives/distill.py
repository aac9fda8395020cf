"""Distillation through attention: a token of its own listens to a teacher.

Source: Touvron et al. 2020 (DeiT), arXiv:2012.12877; soft loss: Hinton et al. 2015, arXiv:1503.02531.
Upstream: `DistillWrapper` in vit_pytorch/distill.py.
Differs from upstream: T2TViT and EfficientViT work as students (upstream's crash); the token starts at a deviation of
0.02 (upstream: 1).
Axes: b batch, n tokens, d dim, k classes.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import one_of
from vit_jax.layers.dense import Dense
from vit_jax.layers.head import NormHead
from vit_jax.objectives.classify import CROSS_ENTROPY, check_loss, correct, smooth_labels
from vit_jax.objectives.protocol import Tree


class Distilled(nn.Module):
    """A student with its distillation token and head: image (b, H, W, c) to logits (b, k) of both heads.

    `student` is any model with `dim`, `num_classes`, `encode` and `head`: ViT, DistillableViT, T2TViT, EfficientViT.
    Its plain variables are `variables["params"]["student"]`. `mlp_layernorm` puts a norm into the distillation head.
    Raises ValueError for another student, or one without classes.
    """

    student: nn.Module
    mlp_layernorm: bool = False

    def __post_init__(self):
        if not (hasattr(self.student, "encode") and hasattr(self.student, "head")):
            raise ValueError(
                f"student={type(self.student).__name__}: expected a model with `encode` and `head`: "
                "vit, distill:DistillableViT, t2t or efficient"
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


TORCH_RULES = (
    ("distill_mlp/norm", "distill_mlp.0"),
    ("distill_mlp/fc", "distill_mlp.1"),
    ("distill_mlp", "distill_mlp.1"),
)


def soft_distillation(
    student: Float[Array, "b k"], teacher: Float[Array, "b k"], temperature: float
) -> Float[Array, ""]:
    """KL(teacher || student) of softened logits, in float32, times temperature squared; mean over b. At least 0."""
    log_p = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    log_q = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1).mean() * temperature**2


def hard_distillation(student: Float[Array, "b k"], teacher: Float[Array, "b k"]) -> Float[Array, ""]:
    """Cross-entropy with the teacher's most probable class, mean over b. At least 0."""
    labels = jax.nn.one_hot(teacher.argmax(axis=-1), teacher.shape[-1])
    return CROSS_ENTROPY["softmax"](student, labels).mean()


@dataclasses.dataclass(frozen=True)
class Distill:
    """(1 - alpha) times the class head's cross-entropy, plus alpha times the distillation head's loss.

    `teacher` maps images to logits (b, k), and its variables come with every `loss` as `extras["teacher"]`; what only
    predicts needs none.
    `head` says what prediction uses: "class", "distill", or "mean" of both heads' logits, as DeiT's code does.
    Raises ValueError for values that make no sense.
    """

    student: nn.Module
    teacher: nn.Module | None
    temperature: float = 1.0
    alpha: float = 0.5
    hard: bool = False
    mlp_layernorm: bool = False
    head: str = "mean"
    cross_entropy: str = "softmax"
    label_smoothing: float = 0.0

    def __post_init__(self):
        check_loss(self.cross_entropy, self.label_smoothing)
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
        teacher_logits = jax.lax.stop_gradient(self.teacher.apply(extras["teacher"], batch["image"]))
        targets = smooth_labels(batch["target"], self.label_smoothing)
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
            "accuracy": correct(self._combine(class_logits, distill_logits), targets).mean(),
        }
        return loss, (metrics, own)

    def predict(self, params: Tree, extras: Tree, images: Array) -> Float[Array, "b k"]:
        own = {name: value for name, value in extras.items() if name != "teacher"}
        return self._combine(*self.model.apply({"params": params, **own}, images))

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        logits = self.predict(params, extras, batch["image"])
        loss = CROSS_ENTROPY[self.cross_entropy](logits, batch["target"])
        return {"loss": loss, "accuracy": correct(logits, batch["target"])}

    def _combine(self, class_logits: Array, distill_logits: Array) -> Array:
        heads = {"class": class_logits, "distill": distill_logits}
        return heads[self.head] if self.head in heads else (class_logits + distill_logits) / 2
