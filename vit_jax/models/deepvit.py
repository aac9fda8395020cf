"""DeepViT: attention maps of all heads are mixed again after the softmax, so that deep layers stay different.

Source: Zhou et al. 2021, arXiv:2103.11886. Upstream: vit_pytorch/deepvit.py.
Differs from upstream: images and patches may be non-square; `num_classes=0` gives tokens; tokens and positions
start at a deviation of 0.02 (upstream: 1).
Differs from the paper: maps are normalised over heads by a LayerNorm (paper: BatchNorm).
Axes: b batch, n tokens, d dim, h heads in, g heads out, i query, j key, k classes.
"""

import functools

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.blocks import Blocks
from vit_jax.layers.dense import Dense
from vit_jax.layers.feed_forward import feed_forward_rules
from vit_jax.layers.head import HEAD_RULES
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.patch_embed import PATCH_EMBED_RULES
from vit_jax.layers.plain_vit import PlainViT
from vit_jax.layers.softmax import softmax


class Attention(nn.Module):
    """Re-attention: maps are mixed over heads by a learned matrix, and normalised, before they weigh the values."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)

        mix = self.param("reattn_weights", nn.initializers.normal(1.0), (self.heads, self.heads))
        attn = LayerNorm(name="reattn_norm")(jnp.einsum("bhij,hg->bijg", attn, mix))
        attn = rearrange(attn, "b i j g -> b g i j")
        self.sow("intermediates", "attn", attn)

        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        out = Dense(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class DeepViT(PlainViT):
    """The plain ViT with re-attention."""

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(Attention, self.heads, self.dim_head, self.dropout)
        return Blocks(self.depth, attention, self.mlp_dim, self.dropout)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "16b": dict(image_size=224, patch_size=16, dim=384, depth=16, heads=12, dim_head=32, mlp_dim=1152),
    "24b": dict(image_size=224, patch_size=16, dim=384, depth=24, heads=12, dim_head=32, mlp_dim=1152),
    "32b": dict(image_size=224, patch_size=16, dim=384, depth=32, heads=12, dim_head=32, mlp_dim=1152),
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"attn_(\d+)/to_out", r"layers.\1.0.to_out.0"),
    (r"attn_(\d+)/reattn_norm", r"layers.\1.0.reattn_norm.1"),
    (r"attn_(\d+)", r"layers.\1.0"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1"),
    *HEAD_RULES,
)
