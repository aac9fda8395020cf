"""The linear layer."""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vit_jax.layers.execution import target_platform


class Dense(nn.Module):
    """Linear layer on the last axis, (..., c) to (..., features)."""

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
    """Return `x @ kernel + bias`.

    Leading axes are merged, since XLA's CPU backend has fast kernels only for products of two matrices. Not on a TPU,
    where the last two axes are stored in tiles, so that merging axes would copy the array (docs/tpu.md).
    """
    *batch, channels = x.shape
    y = jnp.matmul(x if target_platform() == "tpu" else x.reshape(math.prod(batch), channels), kernel)
    if bias is not None:
        y = y + jnp.expand_dims(bias, range(y.ndim - 1))
    # Named after the bias is added, so that a rematerialisation policy can save this sum.
    return checkpoint_name(y, "linear").reshape(*batch, kernel.shape[-1])
