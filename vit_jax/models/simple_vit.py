"""SimpleViT: a ViT with sine-cosine positions and mean pooling, without class token and dropout.

Source: Beyer et al. 2022, arXiv:2205.01580. Upstream: vit_pytorch/simple_vit.py.
Differs from upstream: `num_classes=0` gives tokens.
Differs from the paper: a norm before and after the patch projection, no biases in the projections of attention.
Axes: b batch, n patches, d dim, h heads, i query, j key, k classes.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.layers import (
    Dense,
    LayerNorm,
    PatchEmbed,
    ToHeads,
    append,
    attend,
    gelu,
    run_blocks,
    sincos_2d,
)
from vit_jax.layers.check import pair, patch_grid
from vit_jax.layers.shapes import ExtraTokens, Images, Output, Patches, Tokens


class Attention(nn.Module):
    """Pre-norm multi-head self-attention with neither biases nor the residual: (b, n, d) to the same shape."""

    heads: int
    dim_head: int

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        dim = x.shape[-1]
        x = LayerNorm(name="norm")(x)
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(x)  # each (b, h, n, dim_head)
        # softmax(q kᵀ / sqrt(dim_head)) v, heads concatenated; its map is for vit_jax.capture.attention
        out = attend(self, q, k, v)
        return Dense(dim, use_bias=False, name="to_out")(out)


class FeedForward(nn.Module):
    """Pre-norm feed-forward: two linear maps around a GELU, without the residual: (b, n, d) to the same shape."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        hidden = gelu(Dense(self.hidden_dim, name="fc1")(LayerNorm(name="norm")(x)))
        return Dense(x.shape[-1], name="fc2")(hidden)


class Transformer(nn.Module):
    """`depth` blocks and a last norm: tokens (b, n, d) to the same shape."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    drop_path: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        def block(i, x, drop_path):
            x = x + drop_path(Attention(self.heads, self.dim_head, name=f"attn_{i}")(x))
            return x + drop_path(FeedForward(self.mlp_dim, name=f"ff_{i}")(x))

        x = run_blocks(self, self.depth, block, x, rate=self.drop_path, train=train)  # for each i: x = block(i, x, ...)
        return LayerNorm(name="norm")(x)


class SimpleViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the size of each image, which may be any that `patch_size` divides.

    Args:
        image_size: pixels, or (height, width); only checked against `patch_size`.
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token, a multiple of 4, at least 8.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `dim` is another number.
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
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    def setup(self):
        self.to_patch_embedding = PatchEmbed(pair("patch_size", self.patch_size), self.dim)
        self.transformer = Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim, self.drop_path)
        if self.num_classes:
            self.linear_head = Dense(self.num_classes)

    def __call__(self, images: Images, *, train: bool = False) -> Output:
        """`train` has no effect without `drop_path`, since no other part of SimpleViT is random."""
        tokens = self.encode(images, train=train)
        return self.head(tokens) if self.num_classes else tokens

    def encode(
        self,
        images: Images,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens after the transformer, in the order and with the arguments of `embed`."""
        return self.transform(self.embed(images, extra_tokens, patches=patches, train=train), train=train)

    def embed(
        self,
        images: Images,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens before the transformer: the patches with positions, then `extra_tokens` without.

        `extra_tokens` (e, d) are the same for every image. `patches` (b, p, d) replace the embedded patches of `images`
        one for one, as objectives need that put a mask token in place of some.
        """
        check_images(images, self.channels)
        x = self.to_patch_embedding(images) if patches is None else patches
        rows, columns = patch_grid(images.shape[1:3], self.patch_size)
        x = x + jnp.asarray(sincos_2d(rows, columns, self.dim), x.dtype)[None]
        return x if extra_tokens is None else append(x, extra_tokens)

    def transform(self, tokens: Tokens, *, train: bool = False) -> Tokens:
        """Apply the transformer to the tokens of `embed`."""
        return self.transformer(tokens, train=train)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, after the extra ones are cut off."""
        return self.linear_head(tokens.mean(axis=1))

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"attn_(\d+)", r"layers.\1.0"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.net", fc2=3),
    )


PRESETS = {"tiny": TINY, "ti16": vit_sizes(192), "s16": vit_sizes(384), "b16": vit_sizes(768)}
