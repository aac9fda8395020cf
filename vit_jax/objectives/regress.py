"""Numbers for each image: regression with the squared or the Huber error."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import one_of
from vit_jax.objectives.protocol import Tree
from vit_jax.objectives.supervised import Supervised


def squared_error(outputs: Float[Array, "b m"], targets: Float[Array, "b m"]) -> Float[Array, "b"]:
    """Return the mean over numbers of the squared error, in float32."""
    return jnp.mean((outputs.astype(jnp.float32) - targets) ** 2, axis=-1)


def huber_error(outputs: Float[Array, "b m"], targets: Float[Array, "b m"]) -> Float[Array, "b"]:
    """Return the mean over numbers of the Huber error d^2 / 2, and |d| - 1/2 from |d| = 1 on, in float32.

    It is the same as the smooth L1 error: torch's HuberLoss(delta=1) and SmoothL1Loss(beta=1).
    """
    distance = jnp.abs(outputs.astype(jnp.float32) - targets)
    return jnp.mean(jnp.where(distance < 1, distance**2 / 2, distance - 0.5), axis=-1)


ERRORS = {"mse": squared_error, "huber": huber_error}


@dataclasses.dataclass(frozen=True)
class Regress(Supervised):
    """The error between the outputs of a model and numbers, which should be standardised.

    Args:
        model: a model with an output for each number, and possibly auxiliary losses.
        error: "mse" or "huber".
        auxiliary_weight: weight of auxiliary losses, and of the loss of further outputs.

    Raises:
        ValueError: for another `error`.
    """

    metrics_of_all: ClassVar[bool] = True

    model: nn.Module
    error: str = "mse"
    auxiliary_weight: float = 1.0

    def __post_init__(self):
        one_of("error", self.error, tuple(ERRORS))

    def losses(self, outputs: Float[Array, "b m"], batch: Tree) -> Float[Array, "b"]:
        return ERRORS[self.error](outputs, batch["target"])

    def measured(self, outputs: Float[Array, "b m"], targets: Float[Array, "b m"]) -> dict[str, Float[Array, "b"]]:
        return {"loss": ERRORS[self.error](outputs, targets)}
