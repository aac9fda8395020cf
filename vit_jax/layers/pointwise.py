"""Convolution of one pixel."""

import math

from flax import linen as nn
from jaxtyping import Array, Float


class PointwiseConv(nn.Module):
    """`Dense` with the parameters of a 1x1 convolution: (..., c) to (..., features).

    One product of two matrices: value and gradient took XLA's convolution three times as long on a CPU.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch features"]:
        *batch, channels = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (1, 1, channels, self.features))
        y = x.reshape(math.prod(batch), channels) @ kernel.reshape(channels, self.features)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))[None]
        return y.reshape(*batch, self.features)
