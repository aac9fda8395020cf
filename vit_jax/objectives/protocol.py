"""The interface between the trainer and objectives."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from flax import linen as nn
from jaxtyping import Array

Tree = Mapping[str, Any]


@runtime_checkable
class Objective(Protocol):
    """A loss and its state.

    `params` are the parameters that the optimizer updates. `extras` is all other state of a step, such as
    `batch_stats`, a moving average of the parameters ("ema") or a center. The trainer also passes the variables of a
    frozen teacher in `extras["teacher"]`. An objective does not return these, so they are not part of checkpoints.
    `trunk_path` is the path of the trunk in the parameters. `metrics_of_all` says whether metrics, such as average
    precision, need the outputs for all evaluation images together; `evaluate` then also returns "outputs" (b, k).
    """

    trunk_path: ClassVar[tuple[str, ...]] = ()
    metrics_of_all: ClassVar[bool] = False

    def init(self, key: Array, images: Array) -> tuple[Tree, Tree]:
        """Initialise (params, extras) for images (b, H, W, c)."""
        ...

    def loss(
        self, params: Tree, extras: Tree, batch: Tree, rngs: Mapping[str, Array], train: bool
    ) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        """Compute the loss of a batch.

        Args:
            params: the parameters.
            extras: all other state.
            batch: "image", normalised, (b, H, W, c), and "target", (b, k).
            rngs: keys: "dropout" for the modules, "objective" for the objective's own draws, such as masks and views.
            train: training mode of the modules, such as dropout.

        Returns:
            The scalar to minimise, and a pair of metrics, "loss" among them, and the new extras.
        """
        ...

    def with_totals(self, batch: Tree) -> Tree:
        """Add to a batch what the loss of its slices depends on in the other slices, such as the sum of weights."""
        return batch

    @property
    def constraint(self) -> Callable[[Tree], Tree] | None:
        """The method `constrain` of the model, the field that `trunk_path` names, by default `model`; None without it.

        It returns parameters as the model constrains them after an optimizer step, for example to unit length.
        """
        (name,) = self.trunk_path or ("model",)
        return getattr(getattr(self, name), "constrain", None)

    def constrained(self, params: Tree) -> Tree:
        """Apply the model's constraint, if any, to `params`, which may lack those that are not trained."""
        if self.constraint is None:
            return params
        if not self.trunk_path:
            return self.constraint(params)
        (name,) = self.trunk_path
        return {**params, name: self.constraint(params[name])} if name in params else params

    def updated(self, params: Tree, extras: Tree) -> Tree:
        """Return the extras after an optimizer step to `params`, for example to update a moving average."""
        return extras

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        """Return deterministic metrics for each example, (b,), "loss" among them.

        `batch` also has a "mask" (b,), which is 0 for padding.
        """
        ...

    def trunk(self, params: Tree, extras: Tree) -> tuple[nn.Module, Tree]:
        """Return the trained encoder for later use: a module that outputs features, and its variables."""
        ...


@runtime_checkable
class Classifier(Objective, Protocol):
    """An objective whose model is a classifier."""

    def predict(self, params: Tree, extras: Tree, images: Array) -> Array:
        """Return logits (b, k), as in evaluation."""
        ...
