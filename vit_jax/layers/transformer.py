"""The plain pre-norm transformer encoder.

Source: Vaswani et al. 2017, arXiv:1706.03762. Upstream: `Transformer` in vit_pytorch/vit.py.
"""

from flax import linen as nn

from vit_jax.layers.attention import Attention
from vit_jax.layers.feed_forward import FeedForward
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.run_blocks import run_blocks
from vit_jax.layers.shapes import Tokens


class Transformer(nn.Module):
    """`depth` blocks of attention and feed-forward with residual connections, then a norm: (b, n, dim) to same."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        def block(i, x):
            x = x + Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")(x, train=train)
            return x + FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train)

        return LayerNorm(name="norm")(run_blocks(self, self.depth, block, x, train=train))
