"""A model that is trained on targets: the common part of classification, labels and numbers."""

from abc import abstractmethod
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.objectives.protocol import Classifier, Tree


def split_auxiliary(outputs: Array | tuple) -> tuple[Array, Array | float]:
    """Split what a model returns into outputs and auxiliary loss: the second output if it is a scalar, else 0."""
    if not isinstance(outputs, tuple):
        return outputs, 0.0
    first, second = outputs[:2]
    return first, second if isinstance(second, jax.Array) and second.ndim == 0 else 0.0


def headless(model: nn.Module) -> nn.Module:
    """Return `model` with `num_classes=0`: it outputs features, and ignores the parameters of the head."""
    return model.clone(num_classes=0) if getattr(model, "num_classes", 0) else model


class Supervised(Classifier):
    """A loss between the outputs of a model and the targets of each example.

    The model may return a pair of outputs and an auxiliary loss, as `vit_with_decorr` does.
    """

    model: nn.Module
    auxiliary_weight: float

    @abstractmethod
    def losses(self, outputs: Float[Array, "b k"], batch: Tree) -> Float[Array, "b"]:
        """Return the loss of each example, as it is trained on."""

    @abstractmethod
    def measured(self, outputs: Float[Array, "b k"], targets: Float[Array, "b k"]) -> dict[str, Float[Array, "b"]]:
        """Return metrics of each example, "loss" among them, which is without smoothing and class weights."""

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
        outputs, auxiliary = split_auxiliary(outputs)
        loss = self.losses(outputs, batch).mean() + self.auxiliary_weight * auxiliary
        metrics = {name: values.mean() for name, values in self.measured(outputs, batch["target"]).items()}
        return loss, ({**metrics, "loss": loss}, extras)

    def predict(self, params: Tree, extras: Tree, images: Array) -> Float[Array, "b k"]:
        outputs, _ = split_auxiliary(self.model.apply({"params": params, **extras}, images))
        return outputs

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        outputs = self.predict(params, extras, batch["image"])
        whole = {"outputs": outputs.astype(jnp.float32)} if self.metrics_of_all else {}
        return self.measured(outputs, batch["target"]) | whole

    def trunk(self, params: Tree, extras: Tree) -> tuple[nn.Module, Tree]:
        return headless(self.model), {"params": params, **extras}
