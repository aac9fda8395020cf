"""SimpleViT with a class token that has its own norms and, in the first layers, its own query, key and value maps.

Derives from the frame `BaseSimpleViT` and overrides the transformer and the head, which reads the class
token.

Source: Marouani et al. 2026, arXiv:2602.08626. Upstream: vit_pytorch/simple_vit_with_specialized_cls.py.
Differs from upstream: `num_classes=0` gives the class token and the patches' tokens.
Differs from the paper: a SimpleViT (computed positions, no biases in attention) in place of DINOv2 and others.
Axes: b batch, n tokens, e extra tokens, d dim, h heads, i query, j key, k classes.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.rules import PATCH_EMBED_RULES, sequential_rules
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers import Blocks, Dense, FeedForward, LayerNorm, attend, prepend, sow_block
from vit_jax.layers.check import expect
from vit_jax.layers.shapes import ExtraTokens, Images, Patches, Tokens
from vit_jax.models.simple_vit import PRESETS

__all__ = ["PRESETS", "SimpleViTWithSpecializedCLS"]


def specialize(for_cls: Callable, for_patches: Callable) -> Callable[[Tokens], Float[Array, "b n e"]]:
    """Apply one function to the class token, which comes first, and another one to the other tokens."""
    return lambda x: jnp.concatenate([for_cls(x[:, :1]), for_patches(x[:, 1:])], axis=1)


def norms(name: str = "norm") -> Callable[[Tokens], Tokens]:
    """The separate norms of class token and patches, in the module that calls this.

    `name` is ignored; `FeedForward` passes it.
    """
    return specialize(LayerNorm(name="cls_norm"), LayerNorm(name="patch_norm"))


class Attention(nn.Module):
    """Self-attention without bias; with `specialize_qkv` the class token has its own projection."""

    heads: int
    dim_head: int
    specialize_qkv: bool

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        project = lambda name: Dense(3 * self.heads * self.dim_head, use_bias=False, name=name)
        to_qkv = specialize(project("cls_qkv"), project("patch_qkv")) if self.specialize_qkv else project("to_qkv")
        q, k, v = rearrange(to_qkv(norms()(x)), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        return Dense(x.shape[-1], use_bias=False, name="to_out")(attend(self, q, k, v))


class Transformer(Blocks):
    """`Blocks`, of which the first `specialize_qkv_depth` project the class token separately, and last norms."""

    specialize_qkv_depth: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        for i, drop_path in enumerate(self.drop_paths(train)):
            attention = self.attention(specialize_qkv=i < self.specialize_qkv_depth, name=f"attn_{i}")
            x = x + drop_path(attention(x))
            x = x + drop_path(self.feed_forward(name=f"ff_{i}")(x))
            sow_block(self, x)
        return norms()(x)


class SimpleViTWithSpecializedCLS(BaseSimpleViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    The class token comes first. Positions are computed from the size of each image, which may be
    any that `patch_size` divides.

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
        specialize_qkv_depth: first blocks, in which the class token has its own query, key and
            value maps; by default a third of all, as in the paper.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `dim` is not a multiple of 4 above
            4, or `specialize_qkv_depth` is below 0.
    """

    specialize_qkv_depth: int | None = None

    def __post_init__(self):
        expect(self, "specialize_qkv_depth", (self.specialize_qkv_depth or 0) >= 0, "at least 0, or None")
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        specialized = self.depth // 3 if self.specialize_qkv_depth is None else self.specialize_qkv_depth
        attention = functools.partial(Attention, self.heads, self.dim_head)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, norm=norms)
        return Transformer(self.depth, attention, feed_forward, specialized, drop_path=self.drop_path)

    def setup(self):
        super().setup()
        self.cls_token = self.param("cls_token", nn.initializers.normal(0.01), (self.dim,))

    def embed(
        self,
        images: Images,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens before the transformer: the class token, the patches with positions, and the extra tokens."""
        x = super().embed(images, extra_tokens, patches=patches, train=train)
        return prepend(self.cls_token[None], x)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the class token, the first of `encode`."""
        return self.linear_head(tokens[:, 0])

    torch_rules = (
        *PATCH_EMBED_RULES,
        ("cls_norm", "norm.fns.0"),
        ("patch_norm", "norm.fns.1"),
        ("cls_qkv", "to_qkv.fns.0"),
        ("patch_qkv", "to_qkv.fns.1"),
        (r"attn_(\d+)", r"layers.\1.0"),
        *sequential_rules(r"ff_(\d+)", r"layers.\1.1.net", fc1=0, fc2=2),
        (r"ff_(\d+)", r"layers.\1.1"),
    )
