"""NesT: attention within blocks of the image; from level to level four blocks are merged into one.

Derives from the frame `MapViT` and defines how the map is computed.

Source: Zhang et al. 2021, arXiv:2105.12723. Upstream: vit_pytorch/nest.py.
Differs from upstream: images and patches may be non-square; `num_classes=0` gives the last feature map; positions
have an initial std of 0.02 (upstream: 1). As in upstream, heads are `dim // heads` wide and `dim_head` is ignored.
Differs from the paper: a position is one number, shared by all features and blocks (paper: a vector in each block);
a norm before and after the patch projection; no bias in query, key and value.
Axes: b batch (times blocks), h rows, w columns, d dim, k classes.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from vit_jax.frames import MapViT
from vit_jax.frames.arguments import check_images
from vit_jax.frames.rules import TRANSFORMER_RULES
from vit_jax.frames.stages import per_stage
from vit_jax.layers import (
    Blocks,
    ChannelNorm,
    ConvFeedForward,
    Dense,
    PointwiseConv,
    add_positions,
    attend,
    max_pool,
    stage_rates,
)
from vit_jax.layers.check import at_least, expect, pair, patch_grid
from vit_jax.layers.shapes import Images, Maps


class Attention(nn.Module):
    """Self-attention over all pixels of a map."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        dim, inner_dim = x.shape[-1], x.shape[-1] // self.heads * self.heads
        qkv = PointwiseConv(3 * inner_dim, use_bias=False, name="to_qkv")(ChannelNorm(name="norm")(x))
        q, k, v = rearrange(qkv, "b x y (qkv h d) -> qkv b h (x y) d", qkv=3, h=self.heads)
        out = attend(self, q, k, v, dropout=self.dropout, train=train).reshape((*x.shape[:3], inner_dim))
        return nn.Dropout(self.dropout)(PointwiseConv(dim, name="to_out")(out), deterministic=not train)


class Transformer(Blocks):
    """`Blocks` over a map, with a learned position for each of its `positions` pixels."""

    positions: int

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        pos_emb = self.param("pos_emb", nn.initializers.normal(0.02), (self.positions,))
        pos_emb = jnp.broadcast_to(pos_emb[:, None], (self.positions, x.shape[-1]))
        x = add_positions(rearrange(x, "b h w d -> b (h w) d"), pos_emb).reshape(x.shape)
        return super().__call__(x, train=train)


class NesT(MapViT, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, h, w, d).

    At the first level, each side of the image is divided into `2 ** (num_hierarchies - 1)` blocks,
    at the last one there is a single block.

    Args:
        num_classes: number of classes; 0 for the last feature map.
        channels: channels of an image.
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        dim: width of a token at the first level; it doubles from level to level.
        heads: attention heads at the first level; their number doubles from level to level.
        num_hierarchies: number of levels.
        block_repeats: number of transformer blocks at each level, one number or one per level.
        mlp_mult: hidden width of each feed-forward, as a multiple of its input.
        dim_head: ignored, as in upstream.
        dropout: rate within the blocks.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or the blocks of the first level
            do not divide the grid of patches.
    """

    head_class: ClassVar = Dense
    image_size: int | tuple[int, int] = dataclasses.field()  # without a default, in contrast to MapViT
    patch_size: int | tuple[int, int]
    dim: int
    heads: int
    num_hierarchies: int
    block_repeats: int | tuple[int, ...]
    mlp_mult: int = 4
    dim_head: int = 64
    dropout: float = 0.0

    def check(self):
        at_least(self, num_hierarchies=1, mlp_mult=1)
        per_stage(self, "block_repeats", self.num_hierarchies)
        expect(self, "heads", self.heads <= self.dim, f"at most dim={self.dim}")

    def check_size(self, size, name="image_size"):
        self._block_size(size)

    def _block_size(self, image_size) -> int:
        """Number of patches in a block, which is the same at every level."""
        blocks, grid = 2 ** (self.num_hierarchies - 1), patch_grid(image_size, self.patch_size)
        block = tuple(blocks * side for side in pair("patch_size", self.patch_size))
        patch_grid(image_size, block, "patch_size * 2 ** (num_hierarchies - 1)")
        return math.prod(grid) // blocks**2

    def maps(self, images: Images, *, train: bool) -> Maps:
        check_images(images, self.channels, self.image_size)
        ph, pw = pair("patch_size", self.patch_size)
        x = rearrange(images, "b (h ph) (w pw) c -> b h w (ph pw c)", ph=ph, pw=pw)
        x = PointwiseConv(self.dim, name="patch_proj")(ChannelNorm(name="patch_norm_in")(x))
        x = ChannelNorm(name="patch_norm_out")(x)
        depths = per_stage(self, "block_repeats", self.num_hierarchies)
        rates = stage_rates(self.drop_path, depths)
        for i, depth in enumerate(depths):
            blocks, dim = 2 ** (self.num_hierarchies - 1 - i), 2**i * self.dim
            if i > 0:
                x = nn.Conv(dim, (3, 3), padding=1, name=f"merge_{i - 1}")(x)
                x = ChannelNorm(name=f"merge_norm_{i - 1}")(x)
                x = max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
            attention = functools.partial(Attention, 2**i * self.heads, self.dropout)
            feed_forward = functools.partial(ConvFeedForward, self.mlp_mult * dim, self.dropout)
            layers = (depth, attention, feed_forward, self._block_size(self.image_size))
            x = rearrange(x, "b (i h) (j w) d -> (b i j) h w d", i=blocks, j=blocks)
            x = Transformer(*layers, drop_path=rates[i], name=f"transformer_{i}")(x, train=train)
            x = rearrange(x, "(b i j) h w d -> b (i h) (j w) d", i=blocks, j=blocks)
        return ChannelNorm(name="head_norm")(x) if self.num_classes else x

    torch_rules = (
        *((f"patch_{part}", f"to_patch_embedding.{n}") for part, n in dict(norm_in=1, proj=2, norm_out=3).items()),
        (r"merge_(\d+)", r"layers.\1.1.0"),
        (r"merge_norm_(\d+)", r"layers.\1.1.1"),
        (r"transformer_(\d+)", r"layers.\1.0"),
        *TRANSFORMER_RULES,
        ("head_norm", "mlp_head.0"),
        ("head", "mlp_head.2"),
    )


_PAPER = dict(image_size=224, patch_size=4, num_hierarchies=3)
PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=48, heads=3, num_hierarchies=2, block_repeats=2, mlp_mult=2),
    "t": dict(dim=96, heads=3, block_repeats=(2, 2, 8), **_PAPER),
    "s": dict(dim=96, heads=3, block_repeats=(2, 2, 20), **_PAPER),
    "b": dict(dim=128, heads=4, block_repeats=(2, 2, 20), **_PAPER),
}
