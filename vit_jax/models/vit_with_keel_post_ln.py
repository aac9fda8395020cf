"""ViT with Keel: norms behind the residual again, which survives great depth because the residual is scaled up.

Source: Chen and Wei 2026, arXiv:2601.19895. Upstream: vit_pytorch/vit_with_keel_post_ln.py.
Differs from upstream: tokens and positions start at a deviation of 0.02 (upstream: 1).
Differs from the paper: it reads images, where the paper has language models.
Axes: b batch, n tokens, d dim, h heads, i query, j key, k classes.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, LayerNorm, gelu, softmax
from vit_jax.layers.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.models.vit import ViT
from vit_jax.models.vit import torch_constants as torch_constants  # read by vit_jax.convert


class Attention(nn.Module):
    """Self-attention whose norm has no bias; one head as wide as the input has no output projection."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(use_bias=False, name="norm")(x)
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        if self.heads == 1 and self.dim_head == dim:
            return out
        out = Dense(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class FeedForward(nn.Module):
    """Feed-forward block whose norm has no bias."""

    hidden_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim = x.shape[-1]
        x = LayerNorm(use_bias=False, name="norm")(x)
        x = gelu(Dense(self.hidden_dim, name="fc1")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = Dense(dim, name="fc2")(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class Transformer(nn.Module):
    """`depth` times attention and feed-forward: x becomes norm(residual_scale x + f(x)), the first time x + f(x)."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float
    residual_scale: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        for i in range(2 * self.depth):
            if i % 2 == 0:
                branch = Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")
            else:
                branch = FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")
            out = branch(x, train=train)
            if i == 0:
                x = x + out
            else:
                x = LayerNorm(use_bias=False, name=f"post_norm_{i - 1}")(self.residual_scale * x + out)
        return x


class ViTWithKeelPostLN(ViT):
    """`ViT` with Keel's transformer; its residuals are scaled by their number, 2 * `depth`, if nothing else is given.

    Raises ValueError for a `depth` below 2.
    """

    keel_residual_scale: float | None = None

    def __post_init__(self):
        if self.depth < 2:
            raise ValueError(f"depth={self.depth!r}: expected at least 2")
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        scale = 2 * self.depth if self.keel_residual_scale is None else self.keel_residual_scale
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout, float(scale))


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "s16": dict(image_size=224, patch_size=16, dim=384, depth=12, heads=6, mlp_dim=1536),
    "b16": dict(image_size=224, patch_size=16, dim=768, depth=12, heads=12, mlp_dim=3072),
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"attn_(\d+)/to_out", r"layers.\1.to_out.0"),
    (r"attn_(\d+)", r"layers.\1"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.net"),
    (r"post_norm_(\d+)", r"post_norms.\1"),
)
