"""Max pooling."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from vit_jax.layers.execution import target_platform


def max_pool(
    x: Float[Array, "b *shape c"],
    window: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Float[Array, "b *pooled c"]:
    """Return the maximum of every window, as `nn.max_pool` does. If maxima are equal, the first gets the gradient.

    On a CPU it takes one strided slice for each pixel of the window. XLA's gradient of a reduction over windows took
    eleven times as long there (64 images of 32x32x64, windows of 3x3).

    Args:
        x: images or other arrays with channels last.
        window: size of a window along each axis of `shape`.
        strides: distance between windows along each of these axes; None for 1.
        padding: "VALID", "SAME", or numbers of values before and after each of these axes.
    """
    if target_platform() != "cpu":
        return nn.max_pool(x, tuple(window), strides, padding)
    strides = strides or (1,) * len(window)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    ends = [step * ((side - size) // step + 1) for side, size, step in zip(x.shape[1:-1], window, strides, strict=True)]
    most = None
    for offset in itertools.product(*map(range, window)):
        starts = zip(offset, ends, strides, strict=True)
        values = x[:, *(slice(start, start + end, step) for start, end, step in starts)]
        most = values if most is None else jnp.where((values > most) | jnp.isnan(values), values, most)
    return most
