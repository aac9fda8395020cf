"""The linear map."""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vit_jax.layers.execution import target_platform


class Dense(nn.Module):
    """Linear map of the last axis to `features`."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch features"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        return linear(x, kernel, bias)


def linear(
    x: Float[Array, "*batch c"], kernel: Float[Array, "c d"], bias: Float[Array, " d"] | None = None
) -> Float[Array, "*batch d"]:
    """The last axis of `x` times `kernel`, and `bias` added.

    It is one product of two matrices whatever the leading axes: XLA's CPU backend hands only such to its fast kernels.
    A TPU keeps the last two axes in tiles, and would move whole arrays to merge axes (docs/tpu.md): there they stay.
    """
    *batch, channels = x.shape
    y = jnp.matmul(x if target_platform() == "tpu" else x.reshape(math.prod(batch), channels), kernel)
    if bias is not None:
        y = y + jnp.expand_dims(bias, range(y.ndim - 1))
    # Named so that policies can keep it, its bias added.
    return checkpoint_name(y, "linear").reshape(*batch, kernel.shape[-1])
