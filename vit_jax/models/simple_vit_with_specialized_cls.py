"""SimpleViT with a class token that has norms, and early queries, keys and values, of its own.

Source: Marouani et al. 2026, arXiv:2602.08626. Upstream: vit_pytorch/simple_vit_with_specialized_cls.py.
Differs from upstream: `num_classes=0` gives the class token and the patches' tokens.
Differs from the paper: a SimpleViT (computed positions, no biases in attention) in place of DINOv2 and others.
Axes: b batch, n tokens, e extra tokens, d dim, h heads, i query, j key, k classes.
"""

from collections.abc import Callable

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, LayerNorm, gelu, prepend, softmax
from vit_jax.layers.rules import PATCH_EMBED_RULES
from vit_jax.models.simple_vit import PRESETS, SimpleViT

__all__ = ["PRESETS", "TORCH_RULES", "SimpleViTWithSpecializedCLS"]


def specialize(for_cls: Callable, for_patches: Callable, x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
    """One function for the class token, which comes first, and another for the rest."""
    return jnp.concatenate([for_cls(x[:, :1]), for_patches(x[:, 1:])], axis=1)


class Attention(nn.Module):
    """Self-attention without any bias; with `specialize_qkv` the class token has a projection of its own."""

    heads: int
    dim_head: int
    specialize_qkv: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        project = lambda name: Dense(3 * inner_dim, use_bias=False, name=name)
        x = specialize(LayerNorm(name="cls_norm"), LayerNorm(name="patch_norm"), x)
        qkv = specialize(project("cls_qkv"), project("patch_qkv"), x) if self.specialize_qkv else project("to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        self.sow("intermediates", "attn", attn)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        return Dense(dim, use_bias=False, name="to_out")(out)


class FeedForward(nn.Module):
    """Two linear maps with a GELU between them, after norms for the class token and for patches."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dim = x.shape[-1]
        x = specialize(LayerNorm(name="cls_norm"), LayerNorm(name="patch_norm"), x)
        return Dense(dim, name="fc2")(gelu(Dense(self.hidden_dim, name="fc1")(x)))


class Transformer(nn.Module):
    """`depth` blocks of attention and feed-forward, each with its residual, and last norms."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    specialize_qkv_depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        for i in range(self.depth):
            specialize_qkv = i < self.specialize_qkv_depth
            x = x + Attention(self.heads, self.dim_head, specialize_qkv, name=f"attn_{i}")(x)
            x = x + FeedForward(self.mlp_dim, name=f"ff_{i}")(x)
        return specialize(LayerNorm(name="cls_norm"), LayerNorm(name="patch_norm"), x)


class SimpleViTWithSpecializedCLS(SimpleViT):
    """`SimpleViT` with a class token, which is projected apart in the first `specialize_qkv_depth` layers.

    By default these are a third of all, as in the paper. Raises ValueError when there are fewer than none.
    """

    specialize_qkv_depth: int | None = None

    def __post_init__(self):
        if self.specialize_qkv_depth is not None and self.specialize_qkv_depth < 0:
            raise ValueError(f"specialize_qkv_depth={self.specialize_qkv_depth!r}: expected at least 0, or None")
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        specialized = self.depth // 3 if self.specialize_qkv_depth is None else self.specialize_qkv_depth
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim, specialized)

    def setup(self):
        super().setup()
        self.cls_token = self.param("cls_token", nn.initializers.normal(0.01), (self.dim,))

    def embed(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens before the transformer: the class token, the patches with positions, and the extra tokens."""
        return prepend(self.cls_token[None], super().embed(images, extra_tokens))

    def head(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Logits from the class token, the first of `encode`."""
        return self.linear_head(tokens[:, 0])


TORCH_RULES = (
    *PATCH_EMBED_RULES,
    ("cls_norm", "norm.fns.0"),
    ("patch_norm", "norm.fns.1"),
    ("cls_qkv", "to_qkv.fns.0"),
    ("patch_qkv", "to_qkv.fns.1"),
    (r"attn_(\d+)", r"layers.\1.0"),
    (r"ff_(\d+)/fc1", r"layers.\1.1.net.0"),
    (r"ff_(\d+)/fc2", r"layers.\1.1.net.2"),
    (r"ff_(\d+)", r"layers.\1.1"),
)
