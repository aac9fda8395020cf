"""Attention and feed-forward in turn: what most transformers are whose attention or feed-forward is their own."""

from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.norm import LayerNorm


class Blocks(nn.Module):
    """`depth` blocks of attention and feed-forward, each with its residual; no last norm.

    `attention(name=...)` and `feed_forward(name=...)` make the modules of a block, and `context` goes to the first.
    """

    depth: int
    attention: Callable[..., nn.Module]
    feed_forward: Callable[..., nn.Module]

    def add(self, x: Array, out: Array, part: str, i: int) -> Float[Array, "*batch d"]:
        """The residual around the `part` "attn" or "ff" of block `i`, which has made `out` of `x`."""
        return x + out

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"], *context, train: bool = False) -> Float[Array, "*batch d"]:
        for i in range(self.depth):
            x = self.add(x, self.attention(name=f"attn_{i}")(x, *context, train=train), "attn", i)
            x = self.add(x, self.feed_forward(name=f"ff_{i}")(x, train=train), "ff", i)
        return x


class NormedBlocks(Blocks):
    """`Blocks` and a last norm, which `norm(name=...)` makes."""

    norm: Callable[..., nn.Module] = LayerNorm

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"], *context, train: bool = False) -> Float[Array, "*batch d"]:
        return self.norm(name="norm")(super().__call__(x, *context, train=train))
