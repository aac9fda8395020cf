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
from vit_jax.layers.tokens import append


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

    def make_transformer(self) -> nn.Module:
        """The module between positions and pool, which a variant overrides."""
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim)

    def make_head(self) -> nn.Module:
        """The module that turns pooled features into logits."""
        return Dense(self.num_classes)

    def setup(self):
        self.to_patch_embedding = PatchEmbed(pair("patch_size", self.patch_size), self.dim)
        self.transformer = self.make_transformer()
        if self.num_classes:
            self.linear_head = self.make_head()

    def embed(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens before the transformer: the patches with positions, and the extra tokens."""
        check_images(images, self.channels)
        x = self.to_patch_embedding(images)
        x = x + jnp.asarray(sincos_2d(*patch_grid(images.shape[1:3], self.patch_size), self.dim), x.dtype)[None]
        return x if extra_tokens is None else append(x, extra_tokens)

    def encode(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None, *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Tokens after the transformer: the patches, then the extra tokens. `train` changes nothing here."""
        return self.transformer(self.embed(images, extra_tokens))

    def head(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, without the extra ones."""
        return self.linear_head(tokens.mean(axis=1))

    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        tokens = self.encode(images, train=train)
        return self.head(tokens) if self.num_classes else tokens


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
