"""What a trainer asks of an objective. It never knows which one runs."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array

Tree = Mapping[str, Any]


@runtime_checkable
class Objective(Protocol):
    """A loss over parameters, and what it keeps beside them.

    `params` are what the optimizer moves; `extras` is whatever else a step reads and rewrites (`batch_stats`, an EMA
    teacher). A frozen teacher's variables are also read from `extras`, under "teacher", where the trainer puts them
    for the call; they are never returned, so that no checkpoint holds them.
    """

    def init(self, key: Array, images: Array) -> tuple[Tree, Tree]:
        """Fresh (params, extras) for images (b, H, W, c)."""
        ...

    def loss(
        self, params: Tree, extras: Tree, batch: Tree, rngs: Mapping[str, Array], train: bool
    ) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        """Scalar to minimise, with (metrics, new extras). `batch`: image (b, H, W, c) and target (b, k)."""
        ...

    def predict(self, params: Tree, extras: Tree, images: Array) -> Array:
        """Logits (b, k) as evaluation uses them."""
        ...

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        """Metrics of each example, (b,), among them "loss"."""
        ...
