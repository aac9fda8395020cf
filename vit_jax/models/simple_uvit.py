"""U-ViT: long skips join the layers of the first half to those of the second, as in a U-Net.

Source: Bao et al. 2022, arXiv:2209.12152. Upstream: vit_pytorch/simple_uvit.py.
Differs from upstream: registers start at a deviation of 0.02 (upstream: 1); `num_classes=0` gives the patches' tokens.
Differs from the paper: a classifier with registers (paper: a diffusion model's network, with tokens for time and
condition, that puts out pixels through a convolution); positions are computed (paper: learned).
Axes: b batch, n tokens, d dim.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, FeedForward, LayerNorm
from vit_jax.layers.rules import PATCH_EMBED_RULES
from vit_jax.models.simple_vit import Attention
from vit_jax.models.simple_vit_with_register_tokens import SimpleViTWithRegisterTokens


class Transformer(nn.Module):
    """`depth` blocks of attention and feed-forward, each with its residual, and a last norm.

    What enters a block of the first half also enters its mirror image in the second; with an odd `depth` the middle
    block has neither.
    """

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dim, skips = x.shape[-1], []
        for i in range(self.depth):
            if i < self.depth // 2:
                skips.append(x)
            elif i >= self.depth - self.depth // 2:
                x = Dense(dim, name=f"skip_{i}")(jnp.concatenate([skips.pop(), x], axis=-1))
            x = x + Attention(self.heads, self.dim_head, name=f"attn_{i}")(x)
            x = x + FeedForward(self.mlp_dim, name=f"ff_{i}")(x)
        return LayerNorm(name="norm")(x)


class SimpleUViT(SimpleViTWithRegisterTokens):
    """`SimpleViT` with registers and long skips."""

    def make_transformer(self) -> nn.Module:
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim)


def _paper(image_size, patch_size, dim, depth, heads):
    sizes = dict(dim=dim, depth=depth, heads=heads, dim_head=dim // heads, mlp_dim=4 * dim)
    return dict(image_size=image_size, patch_size=patch_size, **sizes)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=5, heads=4, dim_head=16, mlp_dim=128),
    "s2": _paper(32, 2, 512, 13, 8),
    "s2_deep": _paper(32, 2, 512, 17, 8),
    "m4": _paper(64, 4, 768, 17, 12),
    "l4": _paper(64, 4, 1024, 21, 16),
    "h2": _paper(32, 2, 1152, 29, 16),
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"skip_(\d+)", r"layers.\1.0"),
    (r"attn_(\d+)", r"layers.\1.1"),
    (r"ff_(\d+)/norm", r"layers.\1.2.0"),
    (r"ff_(\d+)/fc1", r"layers.\1.2.1"),
    (r"ff_(\d+)/fc2", r"layers.\1.2.3"),
)
