"""Supervised classification, with softmax or sigmoid cross-entropy."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import one_of
from vit_jax.objectives.protocol import Classifier, Tree


def softmax_cross_entropy(logits: Float[Array, "b k"], targets: Float[Array, "b k"]) -> Float[Array, "b"]:
    """Return -sum_k targets log softmax(logits), in float32. `targets` are probabilities, so labels may be soft."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def sigmoid_cross_entropy(logits: Float[Array, "b k"], targets: Float[Array, "b k"]) -> Float[Array, "b"]:
    """Return the sum over classes of the binary cross-entropy, in float32 (Beyer et al. 2020, arXiv:2006.07159)."""
    logits = logits.astype(jnp.float32)
    return -jnp.sum(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits), axis=-1)


def smooth_labels(targets: Float[Array, "b k"], smoothing: float) -> Float[Array, "b k"]:
    """Mix `targets` with the uniform distribution, with weight `smoothing` (Szegedy et al. 2015, arXiv:1512.00567)."""
    return (1 - smoothing) * targets + smoothing / targets.shape[-1]


CROSS_ENTROPY = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}


def correct(logits: Float[Array, "b k"], targets: Float[Array, "b k"]) -> Float[Array, "b"]:
    """Return 1 where the class with the largest logit is the one with the largest target, else 0."""
    return (logits.argmax(axis=-1) == targets.argmax(axis=-1)).astype(jnp.float32)


def logits_and_auxiliary(outputs: Array | tuple) -> tuple[Array, Array | float]:
    """Split a model's output into logits and auxiliary loss: the second output if it is a scalar, else 0."""
    if not isinstance(outputs, tuple):
        return outputs, 0.0
    logits, second = outputs[:2]
    return logits, second if isinstance(second, jax.Array) and second.ndim == 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Classify(Classifier):
    """Cross-entropy between the logits of a classifier and the labels.

    Args:
        model: the classifier. It may return a pair of logits and an auxiliary loss, as `vit_with_decorr` does.
        cross_entropy: "softmax" or "sigmoid".
        label_smoothing: weight of the uniform distribution in the targets, at least 0 and below 1.
        auxiliary_weight: weight of the auxiliary loss.

    Raises:
        ValueError: for another `cross_entropy` or `label_smoothing`.
    """

    model: nn.Module
    cross_entropy: str = "softmax"
    label_smoothing: float = 0.0
    auxiliary_weight: float = 1.0

    def __post_init__(self):
        check_loss(self.cross_entropy, self.label_smoothing)

    def init(self, key: Array, images: Array) -> tuple[Tree, Tree]:
        variables = dict(self.model.init(key, images))
        return variables.pop("params"), variables

    def loss(
        self, params: Tree, extras: Tree, batch: Tree, rngs: Mapping[str, Array], train: bool
    ) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        variables = {"params": params, **extras}
        outputs, extras = self.model.apply(
            variables, batch["image"], train=train, rngs=rngs, mutable=list(extras) if train else []
        )
        logits, auxiliary = logits_and_auxiliary(outputs)
        targets = smooth_labels(batch["target"], self.label_smoothing)
        loss = CROSS_ENTROPY[self.cross_entropy](logits, targets).mean() + self.auxiliary_weight * auxiliary
        return loss, ({"loss": loss, "accuracy": correct(logits, targets).mean()}, extras)

    def predict(self, params: Tree, extras: Tree, images: Array) -> Float[Array, "b k"]:
        logits, _ = logits_and_auxiliary(self.model.apply({"params": params, **extras}, images))
        return logits

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        logits = self.predict(params, extras, batch["image"])
        loss = CROSS_ENTROPY[self.cross_entropy](logits, batch["target"])
        return {"loss": loss, "accuracy": correct(logits, batch["target"])}

    def trunk(self, params: Tree, extras: Tree) -> tuple[nn.Module, Tree]:
        return headless(self.model), {"params": params, **extras}


def headless(model: nn.Module) -> nn.Module:
    """Return `model` with `num_classes=0`: it outputs features, and ignores the parameters of the head."""
    return model.clone(num_classes=0) if getattr(model, "num_classes", 0) else model


def check_loss(cross_entropy: str, label_smoothing: float) -> None:
    """Raise ValueError unless `cross_entropy` is known and `label_smoothing` is at least 0 and below 1."""
    one_of("cross_entropy", cross_entropy, tuple(CROSS_ENTROPY))
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: expected at least 0 and below 1")
