"""Deep supervision: every loop of a looped model is trained to be the last, and a gate to know what others would gain.

Source: Chng et al. 2026, arXiv:2609.40305. Upstream: the losses in vit_pytorch/looped_vit.py.
Differs from upstream: logits are always those of several loops, with an axis for them.
Axes: l loops, b batch, k classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vit_jax.layers.check import one_of
from vit_jax.objectives.classify import smooth_labels, softmax_cross_entropy


def loop_weights(loops: int, weighting: str | Sequence[float] = "final_mean") -> Float[np.ndarray, "l"]:
    """What the loss of each loop counts: by the name of a weighting, or as given, one number for each.

    Raises ValueError for an unknown name, and for another number of weights.
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


def loop_losses(logits: Float[Array, "l b k"], labels: Int[Array, "b"], label_smoothing: float) -> Float[Array, "l b"]:
    """Cross-entropy of every loop and image, in float32."""
    targets = smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return jax.vmap(softmax_cross_entropy, in_axes=(0, None))(logits, targets)


def deep_supervision_loss(
    logits: Float[Array, "l b k"],
    labels: Int[Array, "b"],
    weighting: str | Sequence[float] = "final_mean",
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Cross-entropy of all loops, weighted by `loop_weights`, summed over loops and meaned over images."""
    losses = loop_losses(logits, labels, label_smoothing)
    return (losses * loop_weights(len(logits), weighting)[:, None]).sum(axis=0).mean()


def exit_targets(
    logits: Float[Array, "l b k"], labels: Int[Array, "b"], label_smoothing: float = 0.0
) -> Float[Array, "l-1 b"]:
    """What the gate should learn to expect after each loop but the last: the largest gain per further loop, or 0."""
    losses = jax.lax.stop_gradient(loop_losses(logits, labels, label_smoothing))
    loop = jnp.arange(len(losses))
    ahead = (loop[None] - loop[:, None])[..., None]
    gains = (losses[:, None] - losses[None]) / jnp.maximum(ahead, 1)
    return jnp.where(ahead > 0, jnp.maximum(gains, 0), 0).max(axis=1)[:-1]
