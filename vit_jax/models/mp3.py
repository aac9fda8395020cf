"""MP3's ViT: a SimpleViT whose patches can attend to only some of the patches, for position prediction.

Derives from the frame `BaseSimpleViT` and overrides attention, feed-forward, transformer and head.

Source: Zhai et al. 2022, arXiv:2207.07611; SimpleViT: Beyer et al. 2022, arXiv:2205.01580.
Upstream: vit_pytorch/mp3.py, whose `MP3` is `vit_jax.objectives.mp3`.
Differs from upstream: `num_classes=0` gives tokens.
Differs from the paper: a norm before and after the patch projection, no bias in query, key and value.
Axes: b batch, n patches, m patches that are read, e extra tokens, d dim, h heads, i query, j key.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.frames.arguments import check_images
from vit_jax.frames.rules import PATCH_EMBED_RULES, TRANSFORMER_RULES, sequential_rules
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers import Blocks, Dense, FeedForward, LayerNorm, NormHead, ToHeads, attend
from vit_jax.layers.shapes import Images, Tokens
from vit_jax.models.simple_vit import PRESETS

__all__ = ["PRESETS", "ViT"]


class Attention(nn.Module):
    """Attention of `x` over itself, or over a context, to which the same norm is applied; without the residual."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, context: Float[Array, "b m d"] | None = None, *, train: bool = False) -> Tokens:
        norm = LayerNorm(name="norm")
        x = norm(x)
        (q,) = ToHeads(1, self.heads, self.dim_head, name="to_q")(x)
        k, v = ToHeads(2, self.heads, self.dim_head, name="to_kv")(x if context is None else norm(context))
        out = Dense(x.shape[-1], name="to_out")(attend(self, q, k, v, dropout=self.dropout, train=train))
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class ViT(BaseSimpleViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the size of each image, which may be any that `patch_size` divides.
    In contrast to SimpleViT there is dropout, and the last norm is part of the head.

    Args:
        image_size: pixels, or (height, width); only checked against `patch_size`.
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token, a multiple of 4.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `dim` is not a multiple of 4
            above 4.
    """

    dropout: float = 0.0

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, self.heads, self.dim_head, self.dropout)

    def make_feed_forward(self) -> Callable[..., nn.Module]:
        return functools.partial(FeedForward, self.mlp_dim, self.dropout)

    def make_transformer(self) -> nn.Module:
        return Blocks(self.depth, self.make_attention(), self.make_feed_forward(), drop_path=self.drop_path)

    def make_head(self) -> nn.Module:
        return NormHead(self.num_classes)

    def encode_seen(self, images: Images, seen: Int[Array, "b m"], *, train: bool = False) -> Tokens:
        """Tokens after the transformer, without positions; all patches attend only to those with indices `seen`."""
        check_images(images, self.channels)
        x = self.to_patch_embedding(images)
        return self.transformer(x, jnp.take_along_axis(x, seen[:, :, None], axis=1), train=train)

    torch_rules = (
        *PATCH_EMBED_RULES,
        *TRANSFORMER_RULES,
        *sequential_rules("linear_head", "linear_head", norm=0, fc=1),
    )
