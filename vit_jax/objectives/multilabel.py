"""Any number of labels for each image: a binary cross-entropy for each label."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.objectives.classify import check_smoothing, check_weights
from vit_jax.objectives.protocol import Tree
from vit_jax.objectives.supervised import Supervised


def binary_cross_entropy(
    logits: Float[Array, "b k"], targets: Float[Array, "b k"], weights: Float[Array, "1 k"] | float = 1.0
) -> Float[Array, "b"]:
    """Return the mean over labels of the binary cross-entropy, in float32.

    `weights` multiply the loss where a label is present, as `pos_weight` of torch's BCEWithLogitsLoss.
    """
    logits = logits.astype(jnp.float32)
    present, absent = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -jnp.mean(weights * targets * present + (1 - targets) * absent, axis=-1)


@dataclasses.dataclass(frozen=True)
class MultiLabel(Supervised):
    """The mean over labels of the binary cross-entropy between logits and targets of 0 and 1.

    Args:
        model: a model with a logit for each label, and possibly auxiliary losses.
        label_smoothing: targets are moved by this share towards 1/2; at least 0 and below 1.
        auxiliary_weight: weight of auxiliary losses, and of the loss of further outputs.
        class_weights: for each label, the weight of the loss where it is present; None: 1.

    Raises:
        ValueError: for other values.
    """

    metrics_of_all: ClassVar[bool] = True

    model: nn.Module
    label_smoothing: float = 0.0
    auxiliary_weight: float = 1.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self):
        check_smoothing(self.label_smoothing)
        if self.class_weights is not None:
            check_weights(self.class_weights)

    def losses(self, outputs: Float[Array, "b k"], batch: Tree) -> Float[Array, "b"]:
        targets = (1 - self.label_smoothing) * batch["target"] + self.label_smoothing / 2
        weights = 1.0 if self.class_weights is None else jnp.asarray(self.class_weights, jnp.float32)[None]
        return binary_cross_entropy(outputs, targets, weights)

    def measured(self, outputs: Float[Array, "b k"], targets: Float[Array, "b k"]) -> dict[str, Float[Array, "b"]]:
        agrees = (outputs > 0) == (targets > 0.5)
        return {"loss": binary_cross_entropy(outputs, targets), "label_accuracy": agrees.mean(axis=-1)}
