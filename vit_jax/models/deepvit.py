"""DeepViT: a learned matrix mixes the attention maps of all heads, which keeps those of deep layers diverse.

Source: Zhou et al. 2021, arXiv:2103.11886. Upstream: vit_pytorch/deepvit.py.
Differs from upstream: images and patches may be non-square; `num_classes=0` gives tokens; tokens and positions
have an initial std of 0.02 (upstream: 1).
Differs from the paper: maps are normalised over heads by a LayerNorm (paper: BatchNorm).
Axes: b batch, n tokens, d dim, h heads in, g heads out, i query, j key, k classes.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.presets import TINY
from vit_jax.frames.rules import HEAD_RULES, PATCH_EMBED_RULES, TRANSFORMER_RULES
from vit_jax.layers import (
    Dense,
    LayerNorm,
    NormHead,
    PatchEmbed,
    ToHeads,
    append,
    attention_scores,
    gelu,
    prepend,
    run_blocks,
    softmax,
)
from vit_jax.layers.check import pair, patch_grid
from vit_jax.layers.shapes import ExtraTokens, Images, Output, Patches, Tokens


class Attention(nn.Module):
    """Pre-norm re-attention, without the residual: tokens (b, n, d) to the same shape.

    A learned matrix mixes the attention maps of all heads; a norm over the heads follows, before maps weigh values.
    """

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        dim = x.shape[-1]
        x = LayerNorm(name="norm")(x)
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(x)  # each (b, h, n, dim_head)
        attn = softmax(attention_scores(q, k, self.dim_head**-0.5)).astype(v.dtype)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)

        mix = self.param("reattn_weights", nn.initializers.normal(1.0), (self.heads, self.heads))
        attn = LayerNorm(name="reattn_norm")(jnp.einsum("bhij,hg->bijg", attn, mix))
        attn = rearrange(attn, "b i j g -> b g i j")
        self.sow("intermediates", "attn", attn)  # for vit_jax.capture.attention: mixed, so its rows do not sum to one

        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
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

        # for each i: x = block(i, x, ...)
        return run_blocks(self, self.depth, block, x, rate=self.drop_path, train=train)


class DeepViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d) before the norm,
    which is part of the head.

    An image may be smaller than `image_size`: its n tokens get the first n positions.

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

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    def setup(self):
        rows, columns = patch_grid(self.image_size, self.patch_size)
        init = nn.initializers.normal(0.02)
        self.to_patch_embedding = PatchEmbed(pair("patch_size", self.patch_size), self.dim)
        self.cls_token = self.param("cls_token", init, (1, 1, self.dim))
        self.pos_embedding = self.param("pos_embedding", init, (1, 1 + rows * columns, self.dim))
        self.embedding_dropout = nn.Dropout(self.emb_dropout)
        self.transformer = Transformer(
            self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout, self.drop_path
        )
        if self.num_classes:
            self.mlp_head = NormHead(self.num_classes)

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
        x = prepend(self.cls_token, x)
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

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"attn_(\d+)/reattn_norm", r"layers.\1.0.reattn_norm.1"),
        *TRANSFORMER_RULES,
        *HEAD_RULES,
    )


def _paper(depth):
    return dict(image_size=224, patch_size=16, dim=384, depth=depth, heads=12, dim_head=32, mlp_dim=1152)


PRESETS = {"tiny": TINY, "16b": _paper(16), "24b": _paper(24), "32b": _paper(32)}
