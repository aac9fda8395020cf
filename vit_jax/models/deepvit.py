"""DeepViT: attention maps of all heads are mixed again after the softmax, so that deep layers stay different.

Source: Zhou et al. 2021, arXiv:2103.11886. Upstream: vit_pytorch/deepvit.py.
Differs from upstream: images and patches may be non-square; `num_classes=0` gives tokens; tokens and positions
start at a deviation of 0.02 (upstream: 1).
Differs from the paper: maps are normalised over heads by a LayerNorm (paper: BatchNorm).
Axes: b batch, n tokens, d dim, h heads in, g heads out, i query, j key, k classes.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from vit_jax.layers import Dense, LayerNorm, PlainViT, ToHeads, softmax
from vit_jax.layers.presets import TINY
from vit_jax.layers.rules import HEAD_RULES, PATCH_EMBED_RULES, TRANSFORMER_RULES
from vit_jax.layers.shapes import Tokens


class Attention(nn.Module):
    """Re-attention: maps are mixed over heads by a learned matrix, and normalised, before they weigh the values."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(LayerNorm(name="norm")(x))
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        mix = self.param("reattn_weights", nn.initializers.normal(1.0), (self.heads, self.heads))
        attn = LayerNorm(name="reattn_norm")(jnp.einsum("bhij,hg->bijg", attn, mix))
        attn = rearrange(attn, "b i j g -> b g i j")
        self.sow("intermediates", "attn", attn)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)


class DeepViT(PlainViT):
    """The plain ViT with re-attention."""

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, self.heads, self.dim_head, self.dropout)


def _paper(depth):
    return dict(image_size=224, patch_size=16, dim=384, depth=depth, heads=12, dim_head=32, mlp_dim=1152)


PRESETS = {"tiny": TINY, "16b": _paper(16), "24b": _paper(24), "32b": _paper(32)}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"attn_(\d+)/reattn_norm", r"layers.\1.0.reattn_norm.1"),
    *TRANSFORMER_RULES,
    *HEAD_RULES,
)
