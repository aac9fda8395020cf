"""MP3's ViT: a SimpleViT in which all patches can read some of them alone, as position prediction asks.

Source: Zhai et al. 2022, arXiv:2207.07611; SimpleViT: Beyer et al. 2022, arXiv:2205.01580.
Upstream: vit_pytorch/mp3.py, whose `MP3` is `vit_jax.objectives.mp3`.
Differs from upstream: `num_classes=0` gives tokens.
Differs from the paper: a norm before and after the patch projection, no bias in query, key and value.
Axes: b batch, n patches, m patches that are seen, e extra tokens, d dim, h heads, i query, j key.
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
    """Attention of x over itself, or over a context under the same norm; without the residual."""

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
    """SimpleViT with dropout, without a norm behind the transformer but with one in the head."""

    dropout: float = 0.0

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, self.heads, self.dim_head, self.dropout)

    def make_feed_forward(self) -> Callable[..., nn.Module]:
        return functools.partial(FeedForward, self.mlp_dim, self.dropout)

    def make_transformer(self) -> nn.Module:
        return Blocks(self.depth, self.make_attention(), self.make_feed_forward())

    def make_head(self) -> nn.Module:
        return NormHead(self.num_classes)

    def encode_seen(self, images: Images, seen: Int[Array, "b m"], *, train: bool = False) -> Tokens:
        """Tokens after the transformer of patches without positions, where all read those that are `seen` alone."""
        check_images(images, self.channels)
        x = self.to_patch_embedding(images)
        return self.transformer(x, jnp.take_along_axis(x, seen[:, :, None], axis=1), train=train)

    torch_rules = (
        *PATCH_EMBED_RULES,
        *TRANSFORMER_RULES,
        *sequential_rules("linear_head", "linear_head", norm=0, fc=1),
    )
