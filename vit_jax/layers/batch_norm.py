"""Batch normalisation with torch's defaults."""

from flax import linen as nn
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with statistics of the batch if `train`, else running ones.

    Running statistics are in the collection `batch_stats`, in float32. As in torch, and unlike Flax, `momentum` is the
    weight of the new batch. Source: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"], *, train: bool = False) -> Float[Array, "*batch d"]:
        keep = 1 - self.momentum
        norm = nn.BatchNorm(not train, momentum=keep, epsilon=self.epsilon, scale_init=self.scale_init, name="norm")
        nn.share_scope(self, norm)
        return norm(x)
