"""SimpleViT: ViT with what a few years of use left of it: no class token, no dropout, positions that are not learned.

Source: Beyer et al. 2022, arXiv:2205.01580. Upstream: vit_pytorch/simple_vit.py.
Differs from upstream: `num_classes=0` gives tokens.
Differs from the paper: a norm before and after the patch projection, no biases in attention.
Axes: b batch, n patches, d dim, h heads, i query, j key, k classes.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, FeedForward, LayerNorm, NormedBlocks, PatchEmbed, ToHeads, append, attend, sincos_2d
from vit_jax.layers.check import check_arguments
from vit_jax.layers.inputs import ImageInput
from vit_jax.layers.presets import TINY, vit_sizes
from vit_jax.layers.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.layers.shapes import ExtraTokens, Inputs, Output, Tokens


class Attention(nn.Module):
    """Self-attention without any bias and always with an output projection. `train` changes nothing here."""

    heads: int
    dim_head: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(LayerNorm(name="norm")(x))
        return Dense(x.shape[-1], use_bias=False, name="to_out")(attend(self, q, k, v))


class SimpleViT(ImageInput):
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

    def make_attention(self) -> Callable[..., nn.Module]:
        """A factory of a block's attention module, called with the name. Variants override the `make_` methods."""
        return functools.partial(Attention, self.heads, self.dim_head)

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
        """Those of a grid of patches, (n, d)."""
        return sincos_2d(*grid, self.dim)

    def embed(self, images: Inputs, extra_tokens: ExtraTokens | None = None) -> Tokens:
        """Tokens before the transformer: the patches with positions, and the extra tokens."""
        self.check_input(images)
        x = self.to_patch_embedding(images)
        x = x + jnp.asarray(self.positions(*self.grid(images.shape[1:-1])), x.dtype)[None]
        return x if extra_tokens is None else append(x, extra_tokens)

    def encode(self, images: Inputs, extra_tokens: ExtraTokens | None = None, *, train: bool = False) -> Tokens:
        """Tokens after the transformer: the patches, then the extra tokens."""
        return self.transformer(self.embed(images, extra_tokens), train=train)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, without the extra ones."""
        return self.linear_head(tokens.mean(axis=1))

    def __call__(self, images: Inputs, *, train: bool = False) -> Output:
        tokens = self.encode(images, train=train)
        return self.head(tokens) if self.num_classes else tokens


PRESETS = {"tiny": TINY, "ti16": vit_sizes(192), "s16": vit_sizes(384), "b16": vit_sizes(768)}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"attn_(\d+)", r"layers.\1.0"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.net", fc2=3),
)
