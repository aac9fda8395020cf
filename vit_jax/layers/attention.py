"""Multi-head self-attention with a norm before it. Source: Vaswani et al. 2017, arXiv:1706.03762."""

from collections.abc import Callable

from flax import linen as nn

from vit_jax.layers.attend import attend
from vit_jax.layers.dense import Dense
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.shapes import Tokens
from vit_jax.layers.to_heads import ToHeads


class Attention(nn.Module):
    """Self-attention of (b, n, d), after a norm and without the residual.

    A single head as wide as the input has no output projection, as upstream.

    Args:
        heads: number of heads.
        dim_head: width of a head.
        dropout: rate on the attention map and on the output.
        norm: function from a name to the norm before the attention.
    """

    heads: int
    dim_head: int
    dropout: float = 0.0
    norm: Callable[..., nn.Module] = LayerNorm

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(self.norm(name="norm")(x))
        out = attend(self, q, k, v, dropout=self.dropout, train=train)
        if self.heads == 1 and self.dim_head == x.shape[-1]:
            return out
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)
