"""1x1 convolution."""

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.dense import linear


class PointwiseConv(nn.Module):
    """1x1 convolution, (..., c) to (..., features), computed as a matmul.

    On a CPU, XLA's convolution and its gradient took three times as long.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch features"]:
        channels = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (1, 1, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        return linear(x, kernel.reshape(channels, self.features), bias)
