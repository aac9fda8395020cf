"""SimpleViT: ViT with what a few years of use left of it: no class token, no dropout, positions that are not learned.

Source: Beyer et al. 2022, arXiv:2205.01580. Upstream: vit_pytorch/simple_vit.py.
Differs from upstream: `num_classes=0` gives tokens.
Differs from the paper: a norm before and after the patch projection, no biases in attention.
Axes: b batch, n patches, d dim, h heads, i query, j key, k classes.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import check_arguments, check_images, pair, patch_grid
from vit_jax.layers.dense import Dense
from vit_jax.layers.feed_forward import FeedForward, feed_forward_rules
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.patch_embed import PATCH_EMBED_RULES, PatchEmbed
from vit_jax.layers.positions import sincos_2d
from vit_jax.layers.softmax import softmax


class Attention(nn.Module):
    """Self-attention without any bias and always with an output projection."""

    heads: int
    dim_head: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
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


class SimpleViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed for the image at hand, so `image_size` only says what it is meant for.
    Raises ValueError when `patch_size` does not divide `image_size` or `dim` is no multiple of 4.
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    channels: int = 3
    dim_head: int = 64

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        """`train` changes nothing here; it is there because every model has it."""
        check_images(images, self.channels)
        x = PatchEmbed(pair("patch_size", self.patch_size), self.dim, name="to_patch_embedding")(images)
        rows, columns = patch_grid(images.shape[1:3], self.patch_size)
        x = x + jnp.asarray(sincos_2d(rows, columns, self.dim), x.dtype)[None]
        x = Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim, name="transformer")(x)
        return Dense(self.num_classes, name="linear_head")(x.mean(axis=1)) if self.num_classes else x


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "ti16": dict(image_size=224, patch_size=16, dim=192, depth=12, heads=3, mlp_dim=768),
    "s16": dict(image_size=224, patch_size=16, dim=384, depth=12, heads=6, mlp_dim=1536),
    "b16": dict(image_size=224, patch_size=16, dim=768, depth=12, heads=12, mlp_dim=3072),
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"attn_(\d+)", r"layers.\1.0"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1", fc2=3),
)
