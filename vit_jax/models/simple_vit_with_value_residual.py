"""SimpleViT with value residuals (ResFormer): every layer's values are mixed with the first layer's.

Source: Zhou et al. 2024, arXiv:2410.17897. Upstream: vit_pytorch/simple_vit_with_value_residual.py.
Differs from upstream: `num_classes=0` gives tokens.
Differs from the paper: each token and head chooses its mix, by a linear map and a sigmoid (paper: two numbers for
each layer, learned or fixed).
Axes: b batch, n patches, d dim, h heads, i query, j key.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, FeedForward, LayerNorm, softmax
from vit_jax.layers.rules import PATCH_EMBED_RULES
from vit_jax.models.simple_vit import PRESETS, SimpleViT

__all__ = ["PRESETS", "TORCH_RULES", "SimpleViTWithValueResidual"]


class Attention(nn.Module):
    """Self-attention without any bias, over its own values mixed with `first_values`; returns its values besides."""

    heads: int
    dim_head: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], first_values: Float[Array, "b h n e"] | None = None
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b h n e"]]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        if first_values is not None:
            mix = nn.sigmoid(Dense(self.heads, name="to_residual_mix")(x))
            mix = rearrange(mix, "b n h -> b h n 1")
            v = mix * v + (1 - mix) * first_values
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        self.sow("intermediates", "attn", attn)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        return Dense(dim, use_bias=False, name="to_out")(out), v


class Transformer(nn.Module):
    """`depth` blocks of attention and feed-forward, each with its residual, and a last norm."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        first_values = None
        for i in range(self.depth):
            attended, values = Attention(self.heads, self.dim_head, name=f"attn_{i}")(x, first_values)
            first_values = values if i == 0 else first_values
            x = x + attended
            x = x + FeedForward(self.mlp_dim, name=f"ff_{i}")(x)
        return LayerNorm(name="norm")(x)


class SimpleViTWithValueResidual(SimpleViT):
    """`SimpleViT` with value residuals."""

    def make_transformer(self) -> nn.Module:
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim)


TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"attn_(\d+)/to_residual_mix", r"layers.\1.0.to_residual_mix.0"),
    (r"attn_(\d+)", r"layers.\1.0"),
    (r"ff_(\d+)/norm", r"layers.\1.1.0"),
    (r"ff_(\d+)/fc1", r"layers.\1.1.1"),
    (r"ff_(\d+)/fc2", r"layers.\1.1.3"),
)
