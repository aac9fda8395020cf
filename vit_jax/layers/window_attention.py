"""Attention within windows, with a learned bias for each offset.

Source: Liu et al. 2021 (Swin Transformer), arXiv:2103.14030.
"""

import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.attend import attend
from vit_jax.layers.dense import Dense
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.positions import relative_positions
from vit_jax.layers.to_heads import ToHeads


class WindowAttention(nn.Module):
    """Self-attention of (b, x, y, n, d) within each of x * y windows of n pixels, without the residual."""

    dim_head: int
    window_size: int
    dropout: float

    def positions(self) -> np.ndarray:
        """The index of the bias for each query and key."""
        return relative_positions(self.window_size)

    @nn.compact
    def __call__(self, x: Float[Array, "b x y n d"], *, train: bool = False) -> Float[Array, "b x y n d"]:
        dim, heads = x.shape[-1], x.shape[-1] // self.dim_head
        q, k, v = ToHeads(3, heads, self.dim_head, name="to_qkv")(LayerNorm(name="norm")(x))
        positions = self.positions()
        biases = nn.Embed(positions.max() + 1, heads, embedding_init=nn.initializers.normal(0.02), name="rel_pos_bias")
        bias = rearrange(biases(positions), "i j h -> 1 1 1 h i j")
        out = attend(self, q, k, v, bias=bias, dropout=self.dropout, train=train)
        return nn.Dropout(self.dropout)(Dense(dim, use_bias=False, name="to_out")(out), deterministic=not train)
