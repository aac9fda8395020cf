"""ViT: a plain transformer over the sequence of an image's patches.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929. Upstream: vit_pytorch/vit.py.
Differs from upstream: tokens and positions have an initial std of 0.02 (upstream: 1), as in the authors' code
for positions; LayerScale is optional.
Differs from the paper: a norm before and after the patch projection, no bias in query, key and value.
Axes: b batch, n tokens, d dim, h heads, i query, j key, k classes.
"""

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import PATCH_EMBED_RULES, TRANSFORMER_RULES
from vit_jax.layers import (
    Dense,
    LayerNorm,
    LayerScale,
    PatchEmbed,
    ToHeads,
    add_positions,
    append,
    attend,
    gelu,
    prepend,
    run_blocks,
)
from vit_jax.layers.check import pair, patch_grid
from vit_jax.layers.shapes import ExtraTokens, Images, Output, Patches, Tokens


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


# Upstream has no LayerScale: exported weights with it have these keys in addition.
LAYER_SCALE_RULES = ((r"attn_scale_(\d+)", r"layers.\1.0.layer_scale"), (r"ff_scale_(\d+)", r"layers.\1.1.layer_scale"))


class Transformer(nn.Module):
    """`depth` blocks and a last norm: tokens (b, n, dim) to the same shape.

    Args:
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        dim_head: width of a head.
        mlp_dim: hidden width of each feed-forward.
        dropout: rate within the blocks.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.
        layer_scale_init: initial LayerScale of every branch (DeiT III: 1e-4); None for no LayerScale, as upstream.

    Raises:
        ValueError: if the tokens do not have `dim` features.
    """

    dim: int
    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale_init: float | None = None

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        if x.shape[-1] != self.dim:
            raise ValueError(f"tokens of shape {x.shape}: expected (batch, tokens, dim) with dim={self.dim}")

        def scaled(branch, name):
            return branch if self.layer_scale_init is None else LayerScale(self.layer_scale_init, name=name)(branch)

        def block(i, x, drop_path):
            branch = Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")(x, train=train)
            x = x + drop_path(scaled(branch, f"attn_scale_{i}"))
            branch = FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train)
            return x + drop_path(scaled(branch, f"ff_scale_{i}"))

        x = run_blocks(self, self.depth, block, x, rate=self.drop_path, train=train)  # for each i: x = block(i, x, ...)
        return LayerNorm(name="norm")(x)

    torch_rules = (*LAYER_SCALE_RULES, *TRANSFORMER_RULES)


class ViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may be smaller than `image_size`: its n tokens get the first n positions. With `pool="mean"` there
    is no class token.

    Args:
        image_size: side of the largest image in pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all tokens.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.
        layer_scale_init: initial LayerScale of every branch (DeiT III: 1e-4); None for no LayerScale, as upstream.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `pool` is neither "cls" nor "mean".
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
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
    layer_scale_init: float | None = None

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    def setup(self):
        rows, columns = patch_grid(self.image_size, self.patch_size)
        cls_tokens = 1 if self.pool == "cls" else 0
        init = nn.initializers.normal(0.02)
        self.to_patch_embedding = PatchEmbed(pair("patch_size", self.patch_size), self.dim)
        self.cls_token = self.param("cls_token", init, (1, self.dim)) if cls_tokens else None
        self.pos_embedding = self.param("pos_embedding", init, (cls_tokens + rows * columns, self.dim))
        self.embedding_dropout = nn.Dropout(self.emb_dropout)
        self.transformer = Transformer(
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            dim_head=self.dim_head,
            mlp_dim=self.mlp_dim,
            dropout=self.dropout,
            drop_path=self.drop_path,
            layer_scale_init=self.layer_scale_init,
        )
        if self.num_classes:
            self.mlp_head = Dense(self.num_classes)

    def __call__(self, images: Images, *, train: bool = False) -> Output:
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
        """Tokens before the transformer: class token and patches, with positions, then `extra_tokens` without.

        `extra_tokens` (e, d) are the same for every image. `patches` (b, p, d) replace the embedded patches of `images`
        one for one, as objectives need that put a mask token in place of some.
        """
        check_images(images, self.channels, self.image_size)
        x = self.to_patch_embedding(images) if patches is None else patches
        if self.cls_token is None:
            x = add_positions(x, self.pos_embedding)
        else:  # positions are added first: so a TPU's compiler fuses the addition with the norm before it
            first, others = self.pos_embedding[:1], self.pos_embedding[1:]
            x = prepend(self.cls_token + first, add_positions(x, others))
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

    torch_rules = (*PATCH_EMBED_RULES, *Transformer.torch_rules)

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores an empty class token if the mean is pooled."""
        return {"cls_token": np.zeros((0, self.dim), np.float32)} if self.pool == "mean" else {}


PRESETS = {
    "tiny": TINY,
    "ti16": vit_sizes(192),
    "s16": vit_sizes(384),
    "b16": vit_sizes(768),
    "b32": vit_sizes(768, patch_size=32),
    "l16": vit_sizes(1024, depth=24),
    "h14": vit_sizes(1280, depth=32, patch_size=14, heads=16, dim_head=80),
}
