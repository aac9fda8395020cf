"""Supervised classification, with softmax or sigmoid cross-entropy."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import one_of
from vit_jax.objectives.protocol import Tree
from vit_jax.objectives.supervised import Supervised


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


def learned_targets(batch: Tree, smoothing: float, class_weights: Sequence[float] | None) -> Float[Array, "b k"]:
    """Return the factors of the log-probabilities in the loss: smoothed targets, weighted by class.

    Weights are divided by their mean over the targets of the batch, as in torch's CrossEntropyLoss(weight=...).
    """
    targets = smooth_labels(batch["target"], smoothing)
    if class_weights is None:
        return targets
    mean = with_mean_weight(batch, class_weights)["mean_weight"]
    return targets * jnp.asarray(class_weights, jnp.float32)[None] / mean[:, None]


def with_mean_weight(batch: Tree, class_weights: Sequence[float] | None) -> Tree:
    """Add the mean class weight of the batch's targets as "mean_weight", (b,) equal numbers, unless it is there."""
    if class_weights is None or "mean_weight" in batch:
        return batch
    mean = (batch["target"] @ jnp.asarray(class_weights, jnp.float32)).mean()
    return {**batch, "mean_weight": jnp.broadcast_to(mean, len(batch["target"]))}


@dataclasses.dataclass(frozen=True)
class Classify(Supervised):
    """Cross-entropy between the logits of a classifier and the labels.

    Args:
        model: the classifier. It may also return auxiliary losses, or logits of tokens; see `Supervised`.
        cross_entropy: "softmax" or "sigmoid".
        label_smoothing: weight of the uniform distribution in the targets, at least 0 and below 1.
        auxiliary_weight: weight of auxiliary losses, and of the loss of further logits.
        class_weights: weight of each class in the loss, for "softmax"; None: all equal.

    Raises:
        ValueError: for other values.
    """

    model: nn.Module
    cross_entropy: str = "softmax"
    label_smoothing: float = 0.0
    auxiliary_weight: float = 1.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self):
        check_loss(self.cross_entropy, self.label_smoothing, self.class_weights)

    def losses(self, outputs: Float[Array, "b k"], batch: Tree) -> Float[Array, "b"]:
        targets = learned_targets(batch, self.label_smoothing, self.class_weights)
        return CROSS_ENTROPY[self.cross_entropy](outputs, targets)

    def measured(self, outputs: Float[Array, "b k"], targets: Float[Array, "b k"]) -> dict[str, Float[Array, "b"]]:
        return {"loss": CROSS_ENTROPY[self.cross_entropy](outputs, targets), "accuracy": correct(outputs, targets)}

    def with_totals(self, batch: Tree) -> Tree:
        return with_mean_weight(batch, self.class_weights)


def check_loss(cross_entropy: str, label_smoothing: float, class_weights: Sequence[float] | None) -> None:
    """Raise ValueError for an unknown `cross_entropy`, or numbers out of range."""
    one_of("cross_entropy", cross_entropy, tuple(CROSS_ENTROPY))
    check_smoothing(label_smoothing)
    if class_weights is not None:
        check_weights(class_weights)
        if cross_entropy != "softmax":
            raise ValueError(f"cross_entropy={cross_entropy!r}: expected 'softmax', for class_weights")


def check_smoothing(label_smoothing: float) -> None:
    """Raise ValueError unless `label_smoothing` is at least 0 and below 1."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: expected at least 0 and below 1")


def check_weights(class_weights: Sequence[float]) -> None:
    """Raise ValueError unless all class weights are positive."""
    if not all(0 < weight < math.inf for weight in class_weights):
        raise ValueError(f"class_weights={class_weights}: expected positive numbers")
