"""A model that is trained on targets: the common part of classification, labels and numbers."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.objectives.protocol import Classifier, Tree


class Outputs(NamedTuple):
    """The outputs and auxiliary losses of a model.

    Attributes:
        main: the outputs that evaluation uses.
        others: further outputs for the same targets, such as the logits of tokens of `wwt`.
        auxiliary: sum of the auxiliary losses, or 0.
    """

    main: Array
    others: tuple[Array, ...]
    auxiliary: Array | int

    def add_losses(self, weight: float, loss: Callable[[Array], Array]) -> Array:
        """The `loss` of the main outputs, plus `weight` times the other outputs' and the auxiliary losses."""
        return loss(self.main) + weight * (sum(map(loss, self.others)) + self.auxiliary)


def split_outputs(outputs: Array | tuple) -> Outputs:
    """Split the outputs of a model.

    In a plain tuple, the outputs come first, and all other scalars are auxiliary losses. The outputs may be a named
    tuple with several outputs for the same targets.
    """
    first, *rest = outputs if type(outputs) is tuple else (outputs,)
    main, *others = first if isinstance(first, tuple) else (first,)
    return Outputs(main, tuple(others), sum(x for x in rest if isinstance(x, jax.Array) and x.ndim == 0))


def headless(model: nn.Module) -> nn.Module:
    """Return `model` with `num_classes=0`: it outputs features, and ignores the parameters of the head."""
    return model.clone(num_classes=0) if getattr(model, "num_classes", 0) else model


class Supervised(Classifier):
    """A loss between the outputs of a model and the targets of each example.

    The model may also return auxiliary losses, as `vit_with_decorr` does. If it does so only with certain keywords, it
    names these in `loss_keywords`, and training passes them.
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
        keywords = getattr(self.model, "loss_keywords", {}) if train else {}
        outputs, extras = self.model.apply(
            variables, batch["image"], train=train, rngs=rngs, mutable=list(extras) if train else [], **keywords
        )
        outputs = split_outputs(outputs)
        loss = outputs.add_losses(self.auxiliary_weight, lambda outputs: self.losses(outputs, batch).mean())
        metrics = {name: values.mean() for name, values in self.measured(outputs.main, batch["target"]).items()}
        return loss, ({**metrics, "loss": loss}, extras)

    def predict(self, params: Tree, extras: Tree, images: Array) -> Float[Array, "b k"]:
        return split_outputs(self.model.apply({"params": params, **extras}, images)).main

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        outputs = self.predict(params, extras, batch["image"])
        whole = {"outputs": outputs.astype(jnp.float32)} if self.metrics_of_all else {}
        return self.measured(outputs, batch["target"]) | whole

    def trunk(self, params: Tree, extras: Tree) -> tuple[nn.Module, Tree]:
        return headless(self.model), {"params": params, **extras}
