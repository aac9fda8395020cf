"""Base of the SimpleViT variants: patches, sine-cosine positions, a transformer, the mean of all tokens, a head.

`vit_jax.models.simple_vit` has the same model in one file, without a base class.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments
from vit_jax.frames.inputs import ImageInput
from vit_jax.frames.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.layers import Dense, FeedForward, LayerNorm, NormedBlocks, PatchEmbed, ToHeads, append, attend, sincos_2d
from vit_jax.layers.shapes import ExtraTokens, Inputs, Output, Patches, Tokens


class BiasFreeAttention(nn.Module):
    """Self-attention without biases, always with an output projection. It has no dropout, so `train` is unused."""

    heads: int
    dim_head: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(LayerNorm(name="norm")(x))
        return Dense(x.shape[-1], use_bias=False, name="to_out")(attend(self, q, k, v))


class BaseSimpleViT(ImageInput):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    A variant overrides the `make_` method of each part that it changes. Positions are computed from the size of each
    input, so images may have any size.

    Args:
        image_size: pixels, or (height, width). It is only checked against `patch_size`.
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `dim` is not a multiple of 4.
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

    def make_attention(self) -> Callable[..., nn.Module]:
        """Return a function from a name to the attention module of a block."""
        return functools.partial(BiasFreeAttention, self.heads, self.dim_head)

    def make_feed_forward(self) -> Callable[..., nn.Module]:
        """Return a function from a name to the feed-forward module of a block."""
        return functools.partial(FeedForward, self.mlp_dim)

    def make_transformer(self) -> nn.Module:
        """Return the module between the positions and the pooling."""
        return NormedBlocks(self.depth, self.make_attention(), self.make_feed_forward(), drop_path=self.drop_path)

    def make_patch_embedding(self) -> nn.Module:
        """Return the module from images to tokens."""
        return PatchEmbed(self.patch_sides(), self.dim)

    def make_head(self) -> nn.Module:
        """Return the module from pooled features to logits."""
        return Dense(self.num_classes)

    def setup(self):
        self.to_patch_embedding = self.make_patch_embedding()
        self.transformer = self.make_transformer()
        if self.num_classes:
            self.linear_head = self.make_head()

    def positions(self, *grid: int) -> np.ndarray:
        """Positions of a grid of patches, (n, d)."""
        return sincos_2d(*grid, self.dim)

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
        """Tokens before the transformer: patches, with positions, then `extra_tokens`, without.

        `patches` replace the embedded patches of `images`, for objectives that mask some of them.
        """
        self.check_input(images)
        x = self.to_patch_embedding(images) if patches is None else patches
        x = x + jnp.asarray(self.positions(*self.grid(images.shape[1:-1])), x.dtype)[None]
        return x if extra_tokens is None else append(x, extra_tokens)

    def transform(self, tokens: Tokens, *context, train: bool = False) -> Tokens:
        """Apply the transformer to tokens from `embed`. `context` is what it needs to know of their grid."""
        return self.transformer(tokens, *context, train=train)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, without its extra tokens."""
        return self.linear_head(tokens.mean(axis=1))

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"attn_(\d+)", r"layers.\1.0"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.net", fc2=3),
    )
