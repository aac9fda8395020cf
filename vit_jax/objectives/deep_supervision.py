"""Deep supervision: a classification loss after every loop of a looped model, and a gate that learns when to exit.

Source: Chng et al. 2026, arXiv:2609.40305. Upstream: the losses in vit_pytorch/looped_vit.py.
Differs from upstream: logits always have an axis for loops; targets are probabilities of classes (upstream: labels and
a smoothing), so that mixed images can be trained on.
Axes: l loops, b batch, k classes.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import one_of
from vit_jax.objectives.classify import CROSS_ENTROPY, Classify, correct, learned_targets
from vit_jax.objectives.protocol import Tree


def loop_weights(loops: int, weighting: str | Sequence[float] = "final_mean") -> Float[np.ndarray, "l"]:
    """Return the weight of each loop's loss.

    Args:
        loops: number of loops.
        weighting: "final" (only the last loop), "exponential" (doubles from loop to loop), "final_mean" (1 for the
            last, 1 in sum for the others), or one number for each loop.

    Raises:
        ValueError: for an unknown name, or another number of weights.
    """
    before = loops - 1
    if not isinstance(weighting, str):
        if len(weighting) != loops:
            raise ValueError(f"weighting={weighting!r}: expected {loops} numbers, one for each loop")
        return np.asarray(weighting, np.float32)
    one_of("weighting", weighting, ("final", "exponential", "final_mean"))
    if weighting == "exponential":
        return 2.0 ** np.arange(-before, 1, dtype=np.float32)
    others = 1 / max(before, 1) if weighting == "final_mean" else 0
    return np.asarray([others] * before + [1], np.float32)


def exit_targets(losses: Float[Array, "l b"]) -> Float[Array, "l-1 b"]:
    """Return the gate's targets after each loop but the last: the largest gain per further loop, at least 0."""
    losses = jax.lax.stop_gradient(losses)
    loop = jnp.arange(len(losses))
    ahead = (loop[None] - loop[:, None])[..., None]
    gains = (losses[:, None] - losses[None]) / jnp.maximum(ahead, 1)
    return jnp.where(ahead > 0, jnp.maximum(gains, 0), 0).max(axis=1)[:-1]


def is_looped(model: nn.Module) -> bool:
    """Whether a model can return the logits of all its loops."""
    return "return_all_logits" in inspect.signature(type(model).__call__).parameters


@dataclasses.dataclass(frozen=True)
class DeepSupervision(Classify):
    """Cross-entropy after every loop of a LoopedViT, weighted by its `deep_supervision_weighting`.

    If the model has a gate (`adaptive_loop`), its mean squared error against `exit_targets` is added. Predictions and
    accuracy are those of the last loop.

    Args:
        model: a LoopedViT.
        cross_entropy: "softmax" or "sigmoid".
        label_smoothing: as in `Classify`.
        auxiliary_weight: weight of the gate's error.
        class_weights: as in `Classify`.

    Raises:
        ValueError: for a model without loops, or one with a gate and a single loop.
    """

    def __post_init__(self):
        super().__post_init__()
        if not is_looped(self.model):
            raise ValueError(f"model={type(self.model).__name__}: expected a model with loops, such as looped_vit")
        if self.model.adaptive_loop and self.model.loop_depth < 2:
            raise ValueError(f"model.loop_depth={self.model.loop_depth}: expected at least 2, for a gate to learn from")

    def loss(
        self, params: Tree, extras: Tree, batch: Tree, rngs: Mapping[str, Array], train: bool
    ) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        gated = self.model.adaptive_loop
        outputs = self.model.apply(
            {"params": params, **extras},
            batch["image"],
            return_all_logits=True,
            return_exit_benefits=gated,
            train=train,
            rngs=rngs,
        )
        logits, benefits = outputs if gated else (outputs, None)
        targets = learned_targets(batch, self.label_smoothing, self.class_weights)
        losses = jax.vmap(CROSS_ENTROPY[self.cross_entropy], in_axes=(0, None))(logits, targets)
        weights = loop_weights(len(losses), self.model.deep_supervision_weighting)
        loss = (losses * weights[:, None]).sum(axis=0).mean()
        metrics = {"accuracy": correct(logits[-1], batch["target"]).mean()}
        if gated:
            metrics["gate_loss"] = ((benefits - exit_targets(losses)) ** 2).mean()
            loss = loss + self.auxiliary_weight * metrics["gate_loss"]
        return loss, ({"loss": loss, **metrics}, extras)
