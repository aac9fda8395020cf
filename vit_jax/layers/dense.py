"""The linear map."""

import math

from flax import linen as nn
from jaxtyping import Array, Float


class Dense(nn.Module):
    """Linear map of the last axis to `features`, as one product of two matrices whatever the leading axes.

    XLA's CPU backend hands only two-dimensional products to its fast kernels, and `nn.Dense` contracts the axes as
    they come; on GPU and TPU the form does not matter (`benchmarks/step_time.py`).
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch features"]:
        *batch, channels = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (channels, self.features))
        y = x.reshape(math.prod(batch), channels) @ kernel
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))[None]
        return y.reshape(*batch, self.features)
