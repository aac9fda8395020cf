"""T2T-ViT: overlapping patches, repeatedly attended to and merged, then a plain transformer.

Source: Yuan et al. 2021, arXiv:2101.11986. Upstream: vit_pytorch/t2t.py.
Differs from upstream: images may be non-square; `num_classes=0` gives tokens; tokens and positions have an
initial std of 0.02 (upstream: 1).
Differs from the paper: positions are learned; by default each merging stage attends at the width of its unfolded
windows, as upstream does (paper: at width 64, as the paper's presets set `token_dim`).
Axes: b batch, n tokens, d dim, h heads or rows, w columns, i query, j key, c channels or width of a stage, k classes.
"""

import math

from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import TRANSFORMER_RULES
from vit_jax.layers import (
    Dense,
    LayerNorm,
    ToHeads,
    append,
    attend,
    gelu,
    prepend,
    run_blocks,
    unfold,
    unfold_grid,
)
from vit_jax.layers.check import at_least, expect, pair
from vit_jax.layers.shapes import ExtraTokens, Images, Output, Tokens


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
    """`depth` blocks and a last norm: tokens (b, n, d) to the same shape."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        def block(i, x, drop_path):
            x = x + drop_path(Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")(x, train=train))
            return x + drop_path(FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train))

        x = run_blocks(self, self.depth, block, x, rate=self.drop_path, train=train)  # for each i: x = block(i, x, ...)
        return LayerNorm(name="norm")(x)


class NarrowBlock(nn.Module):
    """The paper's block of a merging stage: tokens (b, n, c) to (b, n, dim).

    One head narrows the tokens; its values take the place of the residual input. There is no last norm.
    """

    dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, 1, self.dim, name="to_qkv")(LayerNorm(name="norm")(x))  # each (b, 1, n, dim)
        out = Dense(self.dim, name="to_out")(attend(self, q, k, v))
        x = v[:, 0] + nn.Dropout(self.dropout)(out, deterministic=not train)
        return x + FeedForward(self.dim, self.dropout, name="ff")(x, train=train)


class TokensToToken(nn.Module):
    """Image (b, H, W, c) to tokens (b, n, dim).

    Each stage of `t2t_layers`, (kernel, stride), makes one token of every window of `kernel` by `kernel` pixels. After
    each stage but the last a transformer attends over the tokens, which are the pixels of the next stage. A linear map
    to `dim` comes last.
    """

    dim: int
    t2t_layers: tuple[tuple[int, int], ...]
    dropout: float
    token_dim: int | None

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Tokens:
        x = images
        for i, (kernel, stride) in enumerate(self.t2t_layers):
            x = unfold(x, (kernel, kernel), (stride, stride), padding=stride // 2)
            rows = x.shape[1]
            x = rearrange(x, "b h w c -> b (h w) c")
            if i < len(self.t2t_layers) - 1:
                x = rearrange(self.attend(x, i, train=train), "b (h w) c -> b h w c", h=rows)
        return Dense(self.dim, name="proj")(x)

    def attend(self, x: Float[Array, "b n c"], i: int, *, train: bool) -> Float[Array, "b n e"]:
        """Apply the transformer of stage `i`, which is `token_dim` wide if given, else as wide as the tokens."""
        width, name = x.shape[-1], f"transformer_{i}"
        if self.token_dim is not None:
            return NarrowBlock(self.token_dim, self.dropout, name=name)(x, train=train)
        sizes = dict(depth=1, heads=1, dim_head=width, mlp_dim=width)
        return Transformer(**sizes, dropout=self.dropout, name=name)(x, train=train)


class T2TViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may be smaller than `image_size`: its n tokens get the first n positions.

    Args:
        image_size: side of the largest image in pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks; not needed with `transformer`.
        heads: attention heads in each block; not needed with `transformer`.
        mlp_dim: hidden width of each feed-forward; not needed with `transformer`.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all tokens.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        transformer: a module that maps tokens (b, n, dim) to the same shape and takes `train=`.
        t2t_layers: (kernel, stride) of each merging stage, in pixels for the first stage and in tokens for the others;
            the padding is stride // 2.
        token_dim: width of each merging stage but the last, 64 in the paper; None, which upstream's weights need, for
            stages as wide as their tokens.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `depth`, `heads` or `mlp_dim` is missing without a `transformer`, if the image is smaller than a
            window of `t2t_layers`, or `pool` is neither "cls" nor "mean".
    """

    image_size: int | tuple[int, int]
    num_classes: int
    dim: int
    depth: int | None = None
    heads: int | None = None
    mlp_dim: int | None = None
    pool: str = "cls"
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    transformer: nn.Module | None = None
    t2t_layers: tuple[tuple[int, int], ...] = ((7, 4), (3, 2), (3, 2))
    token_dim: int | None = None
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        expect(self, "t2t_layers", len(self.t2t_layers) > 0, "at least one (kernel, stride)")
        at_least(self, token_dim=1)
        self._grid()
        missing = [name for name in ("depth", "heads", "mlp_dim") if getattr(self, name) is None]
        if missing and self.transformer is None:
            raise ValueError(f"{', '.join(missing)} not given: expected numbers, or a transformer")
        super().__post_init__()

    def _grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        grid = pair("image_size", self.image_size)
        for kernel, stride in self.t2t_layers:
            grid = unfold_grid(grid, (kernel, kernel), (stride, stride), stride // 2)
        return grid

    def setup(self):
        init = nn.initializers.normal(0.02)
        self.to_patch_embedding = TokensToToken(self.dim, self.t2t_layers, self.dropout, self.token_dim)
        self.cls_token = self.param("cls_token", init, (1, 1, self.dim))
        self.pos_embedding = self.param("pos_embedding", init, (1, 1 + math.prod(self._grid()), self.dim))
        self.embedding_dropout = nn.Dropout(self.emb_dropout)
        sizes = self.depth, self.heads, self.dim_head, self.mlp_dim
        given = self.transformer is not None
        self.blocks = (
            self.transformer if given else Transformer(*sizes, self.dropout, self.drop_path, name="transformer")
        )
        if self.num_classes:
            self.mlp_head = Dense(self.num_classes)

    def __call__(self, images: Images, *, train: bool = False) -> Output:
        tokens = self.encode(images, train=train)
        return self.head(tokens) if self.num_classes else tokens

    def encode(self, images: Images, extra_tokens: ExtraTokens | None = None, *, train: bool = False) -> Tokens:
        """Tokens after the transformer, in the order of `embed`."""
        return self.transform(self.embed(images, extra_tokens, train=train), train=train)

    def embed(self, images: Images, extra_tokens: ExtraTokens | None = None, *, train: bool = False) -> Tokens:
        """Tokens before the transformer: class token and patches, with positions; then `extra_tokens`, (e, d)."""
        check_images(images, self.channels, self.image_size)
        x = prepend(self.cls_token, self.to_patch_embedding(images, train=train))
        x = x + self.pos_embedding[:, : x.shape[1]]
        if extra_tokens is not None:
            x = append(x, extra_tokens)
        return self.embedding_dropout(x, deterministic=not train)

    def transform(self, tokens: Tokens, *, train: bool = False) -> Tokens:
        """Apply the transformer to the tokens of `embed`."""
        return self.blocks(tokens, train=train)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, after the extra ones are cut off."""
        pooled = tokens[:, 0] if self.pool == "cls" else tokens.mean(axis=1)
        return self.mlp_head(pooled)

    def torch_rules(self) -> tuple[tuple[str, str], ...]:
        """Upstream's entrance is one Sequential: four entries for each merging stage, then the projection."""
        stages = len(self.t2t_layers)
        return (
            *((f"to_patch_embedding/transformer_{i}", f"to_patch_embedding.{4 * i + 3}") for i in range(stages - 1)),
            ("to_patch_embedding/proj", f"to_patch_embedding.{4 * stages}"),
            *TRANSFORMER_RULES,
        )


def _paper(dim, depth, mlp_ratio):
    return dict(image_size=224, dim=dim, depth=depth, heads=dim // 64, mlp_dim=mlp_ratio * dim, token_dim=64)


PRESETS = {
    "tiny": dict(image_size=32, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128, t2t_layers=((3, 2), (3, 2))),
    "7": _paper(256, 7, 2),
    "10": _paper(256, 10, 2),
    "12": _paper(256, 12, 2),
    "14": _paper(384, 14, 3),
    "19": _paper(448, 19, 3),
    "24": _paper(512, 24, 3),
}
