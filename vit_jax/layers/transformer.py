"""The plain pre-norm transformer encoder.

Source: Vaswani et al. 2017, arXiv:1706.03762. Upstream: `Transformer` in vit_pytorch/vit.py.
"""

import functools

from flax import linen as nn

from vit_jax.layers.attention import Attention
from vit_jax.layers.blocks import run_blocks
from vit_jax.layers.check import check_arguments
from vit_jax.layers.feed_forward import FeedForward
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.rules import TRANSFORMER_RULES
from vit_jax.layers.shapes import Tokens


class Transformer(nn.Module):
    """`depth` blocks of attention and feed-forward, each with its residual, and a last norm: (b, n, dim) to same.

    Raises ValueError when the tokens are not `dim` wide.
    """

    dim: int
    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        if x.shape[-1] != self.dim:
            raise ValueError(f"tokens of shape {x.shape}: expected (batch, tokens, dim) with dim={self.dim}")
        attention = functools.partial(Attention, self.heads, self.dim_head, self.dropout)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, self.dropout)
        return LayerNorm(name="norm")(run_blocks(self, self.depth, attention, feed_forward, x, train=train))


TORCH_RULES = TRANSFORMER_RULES
