"""Outputs for the views of an image, and means over pairs of them: for objectives that compare views.

Axes: b batch, v views, c channels, k prototypes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.objectives.protocol import Tree


def project(
    model: nn.Module,
    params: Tree,
    extras: Tree,
    statistics: str,
    groups: Sequence[Float[Array, "b _ ..."]],
    rngs: Mapping[str, Array],
    train: bool,
) -> tuple[list, Tree]:
    """Apply a model to views. Groups of views of the same size go through the model in one batch.

    Args:
        model: the model.
        params: its parameters.
        extras: the other state of the objective.
        statistics: name of the model's batch statistics in `extras`.
        groups: views (b, v, *shape, c), those of a group of one size.
        rngs: random keys of the model.
        train: training mode of the model.

    Returns:
        The outputs, a list over the views of all groups, and the new batch statistics by name.
    """
    if len({views.shape[2:] for views in groups}) == 1:
        groups = [jnp.concatenate(list(groups), axis=1)]
    stats = {"batch_stats": extras[statistics]} if statistics in extras else {}
    projected = []
    for views in groups:
        flat = views.reshape(-1, *views.shape[2:])
        mutable = list(stats) if train else []
        out, moved = model.apply({"params": params, **stats}, flat, train=train, rngs=rngs, mutable=mutable)
        stats = {**stats, **moved}
        apart = jax.tree.map(lambda x: x.reshape(len(views), -1, *x.shape[1:]), out)  # noqa: B023
        projected += [jax.tree.map(lambda x: x[:, i], apart) for i in range(views.shape[1])]  # noqa: B023
    return projected, {statistics: stats["batch_stats"]} if stats else {}


def mean_of_pairs(loss: Callable[[Any, Any], Array], teachers: list, students: list) -> Float[Array, "b"]:
    """Return the mean of loss(teacher, student) over all pairs of views with different indices."""
    pairs = [(t, s) for i, t in enumerate(teachers) for j, s in enumerate(students) if i != j]
    return sum(loss(teacher, student) for teacher, student in pairs) / len(pairs)


def mean_logits(teachers: Sequence[Float[Array, "b *n k"]]) -> Float[Array, "k"]:
    """Return the mean over all axes but the last, and over views, in float32."""
    logits = jnp.stack(list(teachers)).astype(jnp.float32)
    return logits.mean(axis=tuple(range(logits.ndim - 1)))
