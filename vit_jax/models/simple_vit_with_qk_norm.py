"""SimpleViT with normalised queries and keys: scores stay small, so that large models do not diverge.

Source: Dehghani et al. 2023 (ViT-22B), arXiv:2302.05442. Upstream: vit_pytorch/simple_vit_with_qk_norm.py.
Differs from upstream: `norm_head=False` gives a classifier (upstream's head is a norm, whatever `num_classes` is);
`num_classes=0` gives tokens.
Differs from the paper: queries and keys are scaled to length one, then by a learned vector for each head (paper: a
LayerNorm, and scores over the root of `dim_head`); attention and feed-forward take turns (paper: in parallel).
Axes: b batch, n patches, d dim, h heads, i query, j key, k classes.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.dense import Dense
from vit_jax.layers.feed_forward import FeedForward
from vit_jax.layers.norm import LayerNorm, l2_normalize
from vit_jax.layers.softmax import softmax
from vit_jax.models.simple_vit import TORCH_RULES, SimpleViT

__all__ = ["PRESETS", "TORCH_RULES", "SimpleViTWithQKNorm"]


class HeadNorm(nn.Module):
    """RMS norm of each head's vectors, (b, h, n, d), with a scale `gamma` of its own; length one at the start."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h n d"]) -> Float[Array, "b h n d"]:
        heads, dim_head = x.shape[1], x.shape[-1]
        gamma = self.param("gamma", nn.initializers.constant(dim_head**-0.5), (heads, 1, dim_head))
        return l2_normalize(x) * dim_head**0.5 * gamma[None]


class Attention(nn.Module):
    """Self-attention by the angles between queries and keys, without any bias."""

    heads: int
    dim_head: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        q, k = HeadNorm(name="q_norm")(q), HeadNorm(name="k_norm")(k)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k))
        self.sow("intermediates", "attn", attn)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        return Dense(dim, use_bias=False, name="to_out")(out)


class Transformer(nn.Module):
    """`depth` blocks of attention and feed-forward, each with its residual, and a last norm."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        for i in range(self.depth):
            x = x + Attention(self.heads, self.dim_head, name=f"attn_{i}")(x)
            x = x + FeedForward(self.mlp_dim, name=f"ff_{i}")(x)
        return LayerNorm(name="norm")(x)


class SimpleViTWithQKNorm(SimpleViT):
    """`SimpleViT` with normalised queries and keys, whose head gives normalised features (b, d).

    With `norm_head=False`, as in the presets, the head is linear and gives logits (b, k).
    """

    norm_head: bool = True

    def make_transformer(self) -> nn.Module:
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim)

    def make_head(self) -> nn.Module:
        return LayerNorm() if self.norm_head else super().make_head()


def _with_classifier(image_size, patch_size, **sizes):
    return dict(image_size=image_size, patch_size=patch_size, norm_head=False, **sizes)


PRESETS = {
    "tiny": _with_classifier(32, 4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "22b": _with_classifier(224, 14, dim=6144, depth=48, heads=48, dim_head=128, mlp_dim=24576),
}
