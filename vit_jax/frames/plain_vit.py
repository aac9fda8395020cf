"""Base of the ViT variants: patches, a class token, learned positions, a transformer and a head."""

import functools
import math
from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments
from vit_jax.frames.inputs import ImageInput
from vit_jax.frames.rules import HEAD_RULES, PATCH_EMBED_RULES, TRANSFORMER_RULES
from vit_jax.layers.attention import Attention
from vit_jax.layers.blocks import Blocks
from vit_jax.layers.feed_forward import FeedForward
from vit_jax.layers.head import NormHead
from vit_jax.layers.patch_embed import PatchEmbed
from vit_jax.layers.shapes import ExtraTokens, Inputs, Output, Patches, Tokens
from vit_jax.layers.tokens import add_positions, append, pool_tokens, prepend


class TokenViT(ImageInput):
    """The forward pass from images to logits. A subclass defines the modules in `setup`.

    The modules are `to_patch_embedding`, `embedding_dropout`, `transformer` and `mlp_head`, and the parameters
    `cls_token` and `pos_embedding`. The subclass has the arguments `channels`, `num_classes` and `pool`.
    """

    def __call__(self, images: Inputs, *, train: bool = False) -> Output:
        tokens = self.encode(images, train=train)
        return self.head(tokens) if self.num_classes else tokens

    def encode(
        self,
        images: Inputs,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens after the transformer. Their order and the arguments are those of `embed`."""
        return self.transform(self.embed(images, extra_tokens, patches=patches, train=train), train=train)

    def embed(
        self,
        images: Inputs,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens before the transformer: class token and patches, with positions, then `extra_tokens`, without.

        `patches` replace the embedded patches of `images`, for objectives that mask some of them.
        """
        self.check_positions(images)
        x = self.to_patch_embedding(images) if patches is None else patches
        x = add_positions(prepend(self.cls_token, x), self.pos_embedding)
        if extra_tokens is not None:
            x = append(x, extra_tokens)
        return self.embedding_dropout(x, deterministic=not train)

    def transform(self, tokens: Tokens, *context, train: bool = False) -> Tokens:
        """Apply the transformer to tokens from `embed`. `context` is what it needs to know of their grid."""
        return self.transformer(tokens, *context, train=train)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, without its extra tokens."""
        return self.mlp_head(pool_tokens(tokens, self.pool))


class PlainViT(TokenViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    A variant overrides the `make_` method of each part that it changes. An image may be smaller than `image_size`; it
    then gets the first positions.

    Args:
        image_size: pixels, or (height, width).
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
        ValueError: if `patch_size` does not divide `image_size`, or for another `pool`.
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

    def make_attention(self) -> Callable[..., nn.Module]:
        """Return a function from a name to the attention module of a block."""
        return functools.partial(Attention, self.heads, self.dim_head, self.dropout)

    def make_feed_forward(self) -> Callable[..., nn.Module]:
        """Return a function from a name to the feed-forward module of a block."""
        return functools.partial(FeedForward, self.mlp_dim, self.dropout)

    def make_transformer(self) -> nn.Module:
        """Return the module between the positions and the pooling."""
        return Blocks(self.depth, self.make_attention(), self.make_feed_forward(), drop_path=self.drop_path)

    def make_patch_embedding(self) -> nn.Module:
        """Return the module from images to tokens."""
        return PatchEmbed(self.patch_sides(), self.dim)

    def make_head(self) -> nn.Module:
        """Return the module from pooled features to logits."""
        return NormHead(self.num_classes)

    def make_tokens(self, patches: int) -> tuple[Array, Array]:
        """Return the parameters `cls_token` (1, 1, d) and `pos_embedding` (1, n, d)."""
        init = nn.initializers.normal(0.02)
        cls_token = self.param("cls_token", init, (1, 1, self.dim))
        return cls_token, self.param("pos_embedding", init, (1, patches + 1, self.dim))

    def setup(self):
        self.to_patch_embedding = self.make_patch_embedding()
        self.cls_token, self.pos_embedding = self.make_tokens(math.prod(self.grid()))
        self.embedding_dropout = nn.Dropout(self.emb_dropout)
        self.transformer = self.make_transformer()
        if self.num_classes:
            self.mlp_head = self.make_head()

    torch_rules = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES, *HEAD_RULES)
