"""SimpleViT with flash attention's economy: attention maps are never kept for the gradient.

Source: Dao et al. 2022, arXiv:2205.14135. Upstream: vit_pytorch/simple_flash_attn_vit.py.
Differs from upstream: `use_flash=False` works; `use_flash` decides what is kept for the gradient, not which kernel
runs; `num_classes=0` gives tokens.
Differs from the paper: maps are computed again for the gradient, as there, but whole (paper: in tiles).
Axes: b batch, n patches, d dim.
"""

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import FeedForward, NormHead
from vit_jax.models import simple_vit


class Transformer(nn.Module):
    """`depth` blocks of attention and feed-forward, each with its residual; no last norm."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    use_flash: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        attention = simple_vit.Attention
        if self.use_flash:  # keeps products with kernels, and so not those of queries and keys
            attention = nn.remat(attention, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        for i in range(self.depth):
            x = x + attention(self.heads, self.dim_head, name=f"attn_{i}")(x)
            x = x + FeedForward(self.mlp_dim, name=f"ff_{i}")(x)
        return x


class SimpleFlashAttentionViT(simple_vit.SimpleViT):
    """`SimpleViT` with the last norm after the mean; `use_flash` saves memory in training and changes no number."""

    use_flash: bool = True

    def make_transformer(self) -> nn.Module:
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim, self.use_flash)

    def make_head(self) -> nn.Module:
        return NormHead(self.num_classes)


PRESETS = simple_vit.PRESETS

TORCH_RULES = (
    *simple_vit.TORCH_RULES,
    ("linear_head/norm", "linear_head.0"),
    ("linear_head/fc", "linear_head.1"),
)
