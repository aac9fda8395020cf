"""ViT for video: patches of several frames, read by a plain transformer.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929, for images. Upstream: vit_pytorch/vit_3d.py.
Differs from upstream: a video may be shorter than `frames` and smaller than `image_size`; `num_classes=0` gives tokens;
tokens and positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: as `vit` does; the norm after the transformer is applied only to the pooled features.
Axes: b batch, F frames, H and W height and width in pixels, n tokens, c channels, d dim, h heads, i query, j key,
k classes.
"""

import math

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_fits, check_video
from vit_jax.frames.presets import TINY_VIDEO
from vit_jax.frames.rules import HEAD_RULES, PATCH_EMBED_RULES, TRANSFORMER_RULES
from vit_jax.layers import (
    Dense,
    LayerNorm,
    NormHead,
    PatchEmbed,
    ToHeads,
    append,
    attend,
    gelu,
    prepend,
    run_blocks,
)
from vit_jax.layers.check import pair, patch_count, patch_grid
from vit_jax.layers.shapes import ExtraTokens, Output, Tokens, Videos


class Attention(nn.Module):
    """Pre-norm multi-head self-attention, without the residual: tokens (b, n, d) to the same shape."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        dim = x.shape[-1]
        x = LayerNorm(name="norm")(x)
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(x)  # each (b, h, n, dim_head)
        # softmax(q kᵀ / sqrt(dim_head)) v, heads concatenated; its map is for vit_jax.capture.attention
        out = attend(self, q, k, v, dropout=self.dropout, train=train)
        if self.heads == 1 and self.dim_head == dim:
            return out  # upstream has neither projection nor dropout here
        return nn.Dropout(self.dropout)(Dense(dim, name="to_out")(out), deterministic=not train)


class FeedForward(nn.Module):
    """Pre-norm feed-forward: two linear maps around a GELU, without the residual: (b, n, d) to the same shape."""

    hidden_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        hidden = gelu(Dense(self.hidden_dim, name="fc1")(LayerNorm(name="norm")(x)))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="fc2")(hidden), deterministic=not train)


class Transformer(nn.Module):
    """`depth` blocks: tokens (b, n, d) to the same shape."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float
    drop_path: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        def block(i, x, drop_path):
            x = x + drop_path(Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")(x, train=train))
            return x + drop_path(FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train))

        return run_blocks(
            self, self.depth, block, x, rate=self.drop_path, train=train
        )  # for each i: x = block(i, x, ...)


class ViT3D(nn.Module):
    """Classifier: video (b, F, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d) before the norm,
    which is part of the head. Tokens are the class token, then the patches by frame, row and column.

    A video may be shorter than `frames` and smaller than `image_size`; it then gets the first positions.

    Args:
        image_size: side of the largest image in pixels, or (height, width).
        image_patch_size: pixels, or (height, width).
        frames: largest number of frames.
        frame_patch_size: frames of a patch.
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all tokens.
        channels: channels of a frame.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `frame_patch_size` does not divide `frames`, `image_patch_size` does not divide `image_size`, or
            `pool` is neither "cls" nor "mean".
    """

    image_size: int | tuple[int, int]
    image_patch_size: int | tuple[int, int]
    frames: int
    frame_patch_size: int
    num_classes: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    pool: str = "cls"
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        self.grid(self.frames, self.image_size)
        super().__post_init__()

    def grid(self, frames: int, size: int | tuple[int, int]) -> tuple[int, int, int]:
        """Patches along each axis of a video of this size. Raises ValueError if patches do not fill it."""
        count = patch_count("frames", frames, "frame_patch_size", self.frame_patch_size)
        return count, *patch_grid(size, self.image_patch_size, "image_patch_size")

    def setup(self):
        patches = math.prod(self.grid(self.frames, self.image_size))
        sides = (self.frame_patch_size, *pair("image_patch_size", self.image_patch_size))
        init = nn.initializers.normal(0.02)
        self.to_patch_embedding = PatchEmbed(sides, self.dim)
        self.cls_token = self.param("cls_token", init, (1, 1, self.dim))
        self.pos_embedding = self.param("pos_embedding", init, (1, 1 + patches, self.dim))
        self.embedding_dropout = nn.Dropout(self.emb_dropout)
        self.transformer = Transformer(
            self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout, self.drop_path
        )
        if self.num_classes:
            self.mlp_head = NormHead(self.num_classes)

    def __call__(self, video: Videos, *, train: bool = False) -> Output:
        tokens = self.encode(video, train=train)
        return self.head(tokens) if self.num_classes else tokens

    def encode(self, video: Videos, extra_tokens: ExtraTokens | None = None, *, train: bool = False) -> Tokens:
        """Tokens after the transformer, in the order of `embed`."""
        return self.transform(self.embed(video, extra_tokens, train=train), train=train)

    def embed(self, video: Videos, extra_tokens: ExtraTokens | None = None, *, train: bool = False) -> Tokens:
        """Tokens before the transformer: class token and patches, with positions; then `extra_tokens`, (e, d)."""
        check_video(video, self.channels)
        check_fits("video", video, (self.frames, *pair("image_size", self.image_size)), "frames, image_size")
        self.grid(video.shape[1], video.shape[2:4])
        x = prepend(self.cls_token, self.to_patch_embedding(video))
        x = x + self.pos_embedding[:, : x.shape[1]]
        if extra_tokens is not None:
            x = append(x, extra_tokens)
        return self.embedding_dropout(x, deterministic=not train)

    def transform(self, tokens: Tokens, *, train: bool = False) -> Tokens:
        """Apply the transformer to the tokens of `embed`."""
        return self.transformer(tokens, train=train)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, after the extra ones are cut off."""
        pooled = tokens[:, 0] if self.pool == "cls" else tokens.mean(axis=1)
        return self.mlp_head(pooled)

    torch_rules = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES, *HEAD_RULES)


PRESETS = {"tiny": TINY_VIDEO}
