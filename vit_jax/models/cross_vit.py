"""CrossViT: two ViTs read small and large patches; the class token of each also attends to the patches of the other.

Source: Chen et al. 2021, arXiv:2103.14899. Upstream: vit_pytorch/cross_vit.py.
Differs from upstream: images and patches may be non-square; `num_classes=0` gives the tokens of both, (b, n, small d)
and (b, m, large d); tokens and positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: both branches read the same image (paper: of 240 and 224 pixels); each encoder ends with a norm;
between branches one linear map projects the class token, without norm and GELU, and none if the widths are equal; no
bias in query, key and value; heads have the same width in both directions.
Axes: b batch, n tokens (s small, l large), m context, d dim, h heads, i query, j key, k classes.
"""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import PATCH_EMBED_RULES, TRANSFORMER_RULES, sequential_rules
from vit_jax.layers import (
    ContextAttention,
    Dense,
    FeedForward,
    NormedBlocks,
    NormHead,
    PatchEmbed,
    make_drop_path,
    sow_block,
    stage_rates,
)
from vit_jax.layers.check import at_least, pair, patch_grid
from vit_jax.layers.shapes import Images, Tokens
from vit_jax.layers.tokens import add_positions, prepend


class AttendAcross(nn.Module):
    """The class token of `x` attends to itself and the patches of the other branch.

    It is projected to the width of the other branch, and its output back.
    """

    attention: Callable[..., nn.Module]
    drop_path: float

    @nn.compact
    def __call__(self, x: Tokens, other: Float[Array, "b m e"], *, train: bool = False) -> Tokens:
        token, dim, other_dim = x[:, :1], x.shape[-1], other.shape[-1]
        y = token if dim == other_dim else Dense(other_dim, name="project_in")(token)
        y = self.attention(name="fn")(y, other[:, 1:], train=train)
        y = y if dim == other_dim else Dense(dim, name="project_out")(y)
        y = make_drop_path(self, self.drop_path, train)(y)
        return jnp.concatenate([token + y, x[:, 1:]], axis=1)


class CrossTransformer(nn.Module):
    """Rounds of cross attention in both directions.

    First the class token of the small patches attends to the large patches, then that of the large
    ones to the small.
    """

    attention: Callable[..., nn.Module]
    drop_path: tuple[float, ...]  # of each round

    @nn.compact
    def __call__(self, small: Float[Array, "b s d"], large: Float[Array, "b l e"], *, train: bool = False):
        for i, rate in enumerate(self.drop_path):
            small = AttendAcross(self.attention, rate, name=f"small_to_large_{i}")(small, large, train=train)
            large = AttendAcross(self.attention, rate, name=f"large_to_small_{i}")(large, small, train=train)
            sow_block(self, (small, large))
        return small, large


class ImageEmbedder(nn.Module):
    """Image (b, H, W, c) to tokens (b, n, dim): the class token and the patches, with positions."""

    image_size: int | tuple[int, int]
    dropout: float
    dim: int
    patch_size: int | tuple[int, int]

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Tokens:
        init, patches = nn.initializers.normal(0.02), math.prod(patch_grid(self.image_size, self.patch_size))
        cls_token = self.param("cls_token", init, (1, 1, self.dim))
        pos_embedding = self.param("pos_embedding", init, (1, patches + 1, self.dim))
        x = PatchEmbed(pair("patch_size", self.patch_size), self.dim, name="to_patch_embedding")(images)
        return nn.Dropout(self.dropout)(add_positions(prepend(cls_token, x), pos_embedding), deterministic=not train)


class CrossViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k), the sum of the logits of both branches.

    With `num_classes=0` it returns the tokens of both branches, (b, s, sm_dim) and (b, l, lg_dim).
    An image may be smaller than `image_size`; it then gets the first positions.

    Args:
        image_size: pixels, or (height, width).
        num_classes: number of classes; 0 for the tokens of both branches.
        sm_dim: width of a token in the branch with small patches.
        lg_dim: width of a token in the branch with large patches.
        sm_patch_size: pixels, or (height, width), in the branch with small patches.
        sm_enc_depth: blocks of each encoder in the branch with small patches.
        sm_enc_heads: attention heads in the branch with small patches.
        sm_enc_mlp_dim: hidden width of each feed-forward in the branch with small patches.
        sm_enc_dim_head: width of a head in the branch with small patches.
        lg_patch_size: pixels, or (height, width), in the branch with large patches.
        lg_enc_depth: blocks of each encoder in the branch with large patches.
        lg_enc_heads: attention heads in the branch with large patches.
        lg_enc_mlp_dim: hidden width of each feed-forward in the branch with large patches.
        lg_enc_dim_head: width of a head in the branch with large patches.
        cross_attn_depth: rounds of cross attention after each pair of encoders.
        cross_attn_heads: heads of the cross attention.
        cross_attn_dim_head: width of a head of the cross attention.
        depth: number of pairs of encoders, each with its cross attention.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        channels: channels of an image.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `sm_patch_size` or `lg_patch_size` does not divide `image_size`.
    """

    image_size: int | tuple[int, int]
    num_classes: int
    sm_dim: int
    lg_dim: int
    sm_patch_size: int | tuple[int, int] = 12
    sm_enc_depth: int = 1
    sm_enc_heads: int = 8
    sm_enc_mlp_dim: int = 2048
    sm_enc_dim_head: int = 64
    lg_patch_size: int | tuple[int, int] = 16
    lg_enc_depth: int = 4
    lg_enc_heads: int = 8
    lg_enc_mlp_dim: int = 2048
    lg_enc_dim_head: int = 64
    cross_attn_depth: int = 2
    cross_attn_heads: int = 8
    cross_attn_dim_head: int = 64
    depth: int = 3
    dropout: float = 0.1
    emb_dropout: float = 0.1
    channels: int = 3
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        for name in ("sm_patch_size", "lg_patch_size"):
            patch_grid(self.image_size, getattr(self, name), name)
        sizes = [name for name in vars(self) if name.startswith(("sm_", "lg_", "cross_"))]
        at_least(self, **{name: 0 if name.endswith("_depth") else 1 for name in sizes})
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False):
        check_images(images, self.channels, self.image_size)
        embedder = functools.partial(ImageEmbedder, self.image_size, self.emb_dropout)
        small = embedder(self.sm_dim, self.sm_patch_size, name="sm_image_embedder")(images, train=train)
        large = embedder(self.lg_dim, self.lg_patch_size, name="lg_image_embedder")(images, train=train)
        attention = lambda heads, dim_head: functools.partial(ContextAttention, heads, dim_head, self.dropout)
        feed_forward = lambda mlp_dim: functools.partial(FeedForward, mlp_dim, self.dropout)
        small_parts = attention(self.sm_enc_heads, self.sm_enc_dim_head), feed_forward(self.sm_enc_mlp_dim)
        large_parts = attention(self.lg_enc_heads, self.lg_enc_dim_head), feed_forward(self.lg_enc_mlp_dim)
        cross_attention = attention(self.cross_attn_heads, self.cross_attn_dim_head)
        small_depth, large_depth = self.sm_enc_depth, self.lg_enc_depth
        longest = max(small_depth, large_depth)
        for i, rates in enumerate(stage_rates(self.drop_path, (longest + self.cross_attn_depth,) * self.depth)):
            of_small, of_large, of_cross = rates[:small_depth], rates[:large_depth], rates[longest:]
            small_blocks = NormedBlocks(small_depth, *small_parts, drop_path=of_small, name=f"small_{i}")
            large_blocks = NormedBlocks(large_depth, *large_parts, drop_path=of_large, name=f"large_{i}")
            small, large = small_blocks(small, train=train), large_blocks(large, train=train)
            small, large = CrossTransformer(cross_attention, of_cross, name=f"cross_{i}")(small, large, train=train)
        if not self.num_classes:
            return small, large
        small_head, large_head = (NormHead(self.num_classes, name=f"{size}_mlp_head") for size in ("sm", "lg"))
        return small_head(small[:, 0]) + large_head(large[:, 0])

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"small_(\d+)", r"multi_scale_encoder.layers.\1.0"),
        (r"large_(\d+)", r"multi_scale_encoder.layers.\1.1"),
        (r"cross_(\d+)", r"multi_scale_encoder.layers.\1.2"),
        (r"small_to_large_(\d+)", r"layers.\1.0"),
        (r"large_to_small_(\d+)", r"layers.\1.1"),
        ("fn/to_out", "fn.to_out.0"),
        *TRANSFORMER_RULES,
        *sequential_rules("(sm|lg)_mlp_head", r"\1_mlp_head", norm=0, fc=1),
    )


def _sizes(sm_dim, lg_dim, heads, lg_depth, mlp_ratio, **others):
    small = dict(sm_dim=sm_dim, sm_enc_heads=heads, sm_enc_dim_head=sm_dim // heads, sm_enc_mlp_dim=mlp_ratio * sm_dim)
    large = dict(lg_dim=lg_dim, lg_enc_heads=heads, lg_enc_dim_head=lg_dim // heads, lg_enc_mlp_dim=mlp_ratio * lg_dim)
    cross = dict(cross_attn_depth=1, cross_attn_heads=heads, cross_attn_dim_head=lg_dim // heads)
    return dict(image_size=240, lg_enc_depth=lg_depth, dropout=0.0, emb_dropout=0.0) | small | large | cross | others


PRESETS = {
    "tiny": _sizes(32, 64, 2, 1, 2, image_size=32, sm_patch_size=4, lg_patch_size=8, depth=2),
    "ti": _sizes(96, 192, 3, 4, 4),
    "s": _sizes(192, 384, 6, 4, 4),
    "b": _sizes(384, 768, 12, 4, 4),
    "9": _sizes(128, 256, 4, 3, 3),
    "15": _sizes(192, 384, 6, 5, 3),
    "18": _sizes(224, 448, 7, 6, 3),
}
