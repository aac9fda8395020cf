"""The classification head of most upstream models: a norm and a linear layer."""

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.dense import Dense
from vit_jax.layers.norm import LayerNorm


class NormHead(nn.Module):
    """Features (b, d) to logits (b, num_classes)."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
        return Dense(self.num_classes, name="fc")(LayerNorm(name="norm")(x))
