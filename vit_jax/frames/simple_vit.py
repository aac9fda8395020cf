"""The frame of SimpleViT's variants: patches, computed positions, a transformer, the mean of all tokens, a head.

`vit_jax.models.simple_vit` is the same model written out. A variant overrides the `make_` methods.
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
    """Self-attention without any bias and always with an output projection. `train` changes nothing."""

    heads: int
    dim_head: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(LayerNorm(name="norm")(x))
        return Dense(x.shape[-1], use_bias=False, name="to_out")(attend(self, q, k, v))


class BaseSimpleViT(ImageInput):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the size of each input, so `image_size` is only checked against `patch_size`.
    Raises ValueError when `patch_size` does not divide `image_size` or `dim` is not a multiple of 4.
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

    def make_attention(self) -> Callable[..., nn.Module]:
        """A factory of a block's attention module, called with the name."""
        return functools.partial(BiasFreeAttention, self.heads, self.dim_head)

    def make_feed_forward(self) -> Callable[..., nn.Module]:
        """A factory of a block's feed-forward module, called with the name."""
        return functools.partial(FeedForward, self.mlp_dim)

    def make_transformer(self) -> nn.Module:
        """The module between positions and pool."""
        return NormedBlocks(self.depth, self.make_attention(), self.make_feed_forward())

    def make_patch_embedding(self) -> nn.Module:
        """The module that turns images into tokens."""
        return PatchEmbed(self.patch_sides(), self.dim)

    def make_head(self) -> nn.Module:
        """The module that turns pooled features into logits."""
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
        """Tokens after the transformer, in the order and with the arguments of `embed`."""
        return self.transform(self.embed(images, extra_tokens, patches=patches, train=train), train=train)

    def embed(
        self,
        images: Inputs,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens before the transformer: the patches with positions, then `extra_tokens` without.

        `patches` replace the embedded patches of `images`, for objectives that mask some.
        """
        self.check_input(images)
        x = self.to_patch_embedding(images) if patches is None else patches
        x = x + jnp.asarray(self.positions(*self.grid(images.shape[1:-1])), x.dtype)[None]
        return x if extra_tokens is None else append(x, extra_tokens)

    def transform(self, tokens: Tokens, *, train: bool = False) -> Tokens:
        """Tokens after the transformer, from those before it."""
        return self.transformer(tokens, train=train)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, without the extra ones."""
        return self.linear_head(tokens.mean(axis=1))

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"attn_(\d+)", r"layers.\1.0"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.net", fc2=3),
    )
