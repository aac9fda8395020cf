"""Attention and feed-forward in turn: what a transformer is whose attention alone is its own."""

from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.feed_forward import FeedForward


class Blocks(nn.Module):
    """`depth` blocks of attention and feed-forward, each with its residual; no last norm.

    `attention(name=...)` makes the attention of a block; `layers.transformer.TORCH_RULES` fit its parameters.
    """

    depth: int
    attention: Callable[..., nn.Module]
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        for i in range(self.depth):
            x = x + self.attention(name=f"attn_{i}")(x, train=train)
            x = x + FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train)
        return x
