"""A learned factor for each feature of a residual branch."""

from flax import linen as nn
from jaxtyping import Array, Float


class LayerScale(nn.Module):
    """Multiply each feature by a learned factor that starts at `init`. Source: arXiv:2103.17239."""

    init: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        gamma = self.param("gamma", nn.initializers.constant(self.init), x.shape[-1:])
        return x * gamma[None, None]
