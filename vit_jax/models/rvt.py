"""RvT: a ViT with rotary positions, convolutional queries and gated feed-forward blocks.

Derives from the frame `PlainViT` and overrides all of its modules; there are no learned positions.

Upstream: vit_pytorch/rvt.py (no paper; the rotations are Su et al. 2021, arXiv:2104.09864, along two axes).
Differs from upstream: images and patches may be non-square, where the longer side sets the largest frequency;
`emb_dropout` works (upstream: ignored); `num_classes=0` gives tokens; the class token has an initial std of 0.02
(upstream: 1).
Axes: b batch, n tokens, p patches, d dim, f features of a head, r rotated ones, h heads, i query, j key, k classes.
"""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_images
from vit_jax.frames.plain_vit import NormHead, PlainViT
from vit_jax.frames.presets import TINY
from vit_jax.frames.rules import HEAD_RULES, PATCH_PROJECTION_RULES, attention_rules, feed_forward_rules
from vit_jax.layers import (
    Dense,
    DepthwiseConv,
    FeedForward,
    LayerNorm,
    PatchProjection,
    PointwiseConv,
    attend,
    drop_paths,
    gelu,
    sow_block,
)
from vit_jax.layers.check import pair, patch_grid
from vit_jax.layers.rotary import rotate
from vit_jax.layers.shapes import Images, Patches, Tokens
from vit_jax.layers.to_heads import ToHeads
from vit_jax.layers.tokens import prepend


def frequencies(dim_head: int, max_freq: int) -> np.ndarray:
    """Half turns from the middle of an image to its edge, float32 (dim_head / 4,)."""
    return np.linspace(1.0, max_freq / 2, dim_head // 4).astype(np.float32)


def rotations(rows: int, columns: int, turns: np.ndarray) -> np.ndarray:
    """Sine and cosine, float32 (2, p, r), of patches by their row, then by their column, from -1 to 1."""
    grid = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    angles = np.concatenate([axis.reshape(-1, 1) * turns * np.pi for axis in grid], axis=1).repeat(2, axis=1)
    return np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)


class ConvQuery(nn.Module):
    """Queries (b, n, features): a separable convolution of the patches, a linear map of the class token."""

    features: int
    rows: int

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "b n e"]:
        token, grid = x[:, :1], rearrange(x[:, 1:], "b (h w) d -> b h w d", h=self.rows)
        if self.features != x.shape[-1]:
            token = Dense(self.features, name="cls_proj")(token)
        grid = DepthwiseConv(kernel=5, use_bias=False, name="depthwise")(grid)
        grid = PointwiseConv(self.features, use_bias=False, name="pointwise")(grid)
        return jnp.concatenate([token, rearrange(grid, "b h w d -> b (h w) d")], axis=1)


class Attention(nn.Module):
    """Self-attention with optional convolutional queries and rotary positions.

    With `rows`, the rows of the grid of patches, queries are convolved; with `sin_cos` queries and
    keys are rotated.
    """

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Tokens, rows: int | None, sin_cos: Float[Array, "2 p r"] | None, *, train: bool = False
    ) -> Tokens:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        to_q = ConvQuery(inner_dim, rows, name="to_q") if rows else Dense(inner_dim, False, name="to_q")
        q = rearrange(to_q(x), "b n (h d) -> b h n d", h=self.heads)
        k, v = ToHeads(2, self.heads, self.dim_head, name="to_kv")(x)
        if sin_cos is not None:
            q, k = rotate(q, sin_cos), rotate(k, sin_cos)
        out = Dense(dim, name="to_out")(attend(self, q, k, v, dropout=self.dropout, train=train))
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class GatedFeedForward(nn.Module):
    """Feed-forward whose hidden layer is twice as wide; one half gates the other (arXiv:2002.05202)."""

    hidden_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        hidden = Dense(2 * self.hidden_dim, name="fc1")(LayerNorm(name="norm")(x))
        values, gates = jnp.split(hidden, 2, axis=-1)
        hidden = nn.Dropout(self.dropout)(values * gelu(gates), deterministic=not train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="fc2")(hidden), deterministic=not train)


class RvT(PlainViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may have any size that patches fill.

    Args:
        image_size: pixels, or (height, width); sets the largest frequency of the rotary positions.
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        use_rotary: rotate queries and keys.
        use_ds_conv: compute queries by a depthwise separable convolution.
        use_glu: gate the feed-forwards.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`.
    """

    pool: ClassVar[str] = "cls"
    use_rotary: bool = True
    use_ds_conv: bool = True
    use_glu: bool = True

    def setup(self):
        feed_forward = GatedFeedForward if self.use_glu else FeedForward
        self.to_patch_embedding = PatchProjection(pair("patch_size", self.patch_size), self.dim)
        self.cls_token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.dim))
        self.embedding_dropout = nn.Dropout(self.emb_dropout)
        self.attn = [Attention(self.heads, self.dim_head, self.dropout) for _ in range(self.depth)]
        self.ff = [feed_forward(self.mlp_dim, self.dropout) for _ in range(self.depth)]
        if self.num_classes:
            self.mlp_head = NormHead(self.num_classes)

    def embed(self, images: Images, *, patches: Patches | None = None, train: bool = False) -> Tokens:
        """Tokens before the blocks: the class token and the patches."""
        check_images(images, self.channels)
        x = self.to_patch_embedding(images) if patches is None else patches
        return self.embedding_dropout(prepend(self.cls_token, x), deterministic=not train)

    def encode(self, images: Images, *, patches: Patches | None = None, train: bool = False) -> Tokens:
        """Tokens after the blocks."""
        x = self.embed(images, patches=patches, train=train)
        rows, columns = patch_grid(images.shape[1:3], self.patch_size)
        turns = frequencies(self.dim_head, max(pair("image_size", self.image_size)))
        sin_cos = jnp.asarray(rotations(rows, columns, turns), x.dtype)
        context = rows if self.use_ds_conv else None, sin_cos if self.use_rotary else None
        return self.transform(x, *context, train=train)

    def transform(self, tokens: Tokens, *context, train: bool = False) -> Tokens:
        """Apply the blocks to tokens from `embed`. `context` are the rows of patches and the rotations."""
        drop = drop_paths(self, self.drop_path, self.depth, train)
        for attn, ff, drop_path in zip(self.attn, self.ff, drop, strict=True):
            tokens = tokens + drop_path(attn(tokens, *context, train=train))
            tokens = tokens + drop_path(ff(tokens, train=train))
            sow_block(self, tokens)
        return tokens

    torch_rules = (
        *PATCH_PROJECTION_RULES,
        (r"attn_(\d+)/to_q/depthwise", r"transformer.layers.\1.0.to_q.conv.net.0"),
        (r"attn_(\d+)/to_q/pointwise", r"transformer.layers.\1.0.to_q.conv.net.1"),
        *attention_rules(r"attn_(\d+)", r"transformer.layers.\1.0"),
        *feed_forward_rules(r"ff_(\d+)", r"transformer.layers.\1.1.net"),
        *HEAD_RULES,
    )

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Frequencies of the rotations."""
        return {"transformer.pos_emb.scales": frequencies(self.dim_head, max(pair("image_size", self.image_size)))}


PRESETS = {"tiny": TINY}
