"""The interface between trainer and objectives."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from flax import linen as nn
from jaxtyping import Array

Tree = Mapping[str, Any]


@runtime_checkable
class Objective(Protocol):
    """A loss over parameters, and what it keeps beside them.

    `params` are what the optimizer moves; `extras` is whatever else a step reads and rewrites (`batch_stats`; under
    "ema" an average of the parameters; a centre). A frozen teacher's variables are also read from `extras`, under
    "teacher", where the trainer puts them for the call; they are never returned, so that no checkpoint holds them.
    `trunk_path` says where in the parameters the trunk stands.
    """

    trunk_path: ClassVar[tuple[str, ...]] = ()

    def init(self, key: Array, images: Array) -> tuple[Tree, Tree]:
        """Fresh (params, extras) for images (b, H, W, c)."""
        ...

    def loss(
        self, params: Tree, extras: Tree, batch: Tree, rngs: Mapping[str, Array], train: bool
    ) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        """Scalar to minimise, with (metrics, new extras), "loss" among the metrics.

        `batch`: image (b, H, W, c), normalised, and target (b, k). `rngs`: "dropout" for the modules, and "objective"
        for what the objective itself draws: masks, views.
        """
        ...

    def updated(self, params: Tree, extras: Tree) -> Tree:
        """The extras after an optimizer step that led to `params`: where an average follows them."""
        return extras

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        """Metrics of each example, (b,), among them "loss"; the same whenever it is asked.

        `batch` has a "mask" besides, (b,): 0 for what only fills the batch up.
        """
        ...

    def trunk(self, params: Tree, extras: Tree) -> tuple[nn.Module, Tree]:
        """The trained encoder for later use: a module that returns features, and its variables."""
        ...


@runtime_checkable
class Classifier(Objective, Protocol):
    """An objective whose model is a classifier."""

    def predict(self, params: Tree, extras: Tree, images: Array) -> Array:
        """Logits (b, k) as evaluation uses them."""
        ...
