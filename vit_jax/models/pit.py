"""PiT: a ViT that pools its grid of patches between stages, as convolutional networks do.

Source: Heo et al. 2021, arXiv:2103.16302. Upstream: vit_pytorch/pit.py.
Differs from upstream: images and patches may be non-square; `mlp_dim` may be a tuple, one number per stage, as the
paper needs; `num_classes=0` gives tokens; tokens and positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: pooling ends with a 1x1 convolution; the class token has a position, too.
Axes: b batch, n tokens, d dim, h heads, or rows of a grid, w its columns, i query, j key, k classes.
"""

import math

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import HEAD_RULES, TRANSFORMER_RULES
from vit_jax.frames.stages import per_stage
from vit_jax.layers import (
    Dense,
    DepthwiseConv,
    LayerNorm,
    NormHead,
    PointwiseConv,
    ToHeads,
    attend,
    gelu,
    run_blocks,
    stage_rates,
)
from vit_jax.layers.check import expect, pair
from vit_jax.layers.shapes import Images, Output, Tokens
from vit_jax.layers.tokens import prepend
from vit_jax.layers.unfold import unfold, unfold_grid


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
    """`depth` blocks: tokens (b, n, d) to the same shape."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float
    drop_path: tuple[float, ...]

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        def block(i, x, drop_path):
            x = x + drop_path(Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")(x, train=train))
            return x + drop_path(FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train))

        return run_blocks(
            self, self.depth, block, x, rate=self.drop_path, train=train
        )  # for each i: x = block(i, x, ...)


class Pool(nn.Module):
    """Halve the sides of a grid of `rows`, rounded up, and double the width of tokens; the class token stays first.

    (b, 1 + rows * columns, d) to (b, 1 + ceil(rows / 2) * ceil(columns / 2), 2 d).
    """

    rows: int

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "b m e"]:
        dim = 2 * x.shape[-1]
        grid = rearrange(x[:, 1:], "b (h w) d -> b h w d", h=self.rows)
        grid = DepthwiseConv(kernel=3, stride=2, multiplier=2, name="depthwise")(grid)
        patches = rearrange(PointwiseConv(dim, name="pointwise")(grid), "b h w d -> b (h w) d")
        return jnp.concatenate([Dense(dim, name="cls_ff")(x[:, :1]), patches], axis=1)


class PiT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d * 2**(stages - 1))
    before the norm, which is part of the head.

    Patches overlap by half. From each stage to the next the sides of the grid of patches halve, rounded up, and
    the width of a token doubles.
    An image may be smaller than `image_size`: its n tokens get the first n positions.

    Args:
        image_size: side of the largest image in pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token in the first stage.
        depth: number of blocks in each stage.
        heads: attention heads, one number or one per stage.
        mlp_dim: hidden width of each feed-forward, one number or one per stage.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        channels: channels of an image.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size` or is 1, `depth` is not a tuple, or
            `heads` or `mlp_dim` has another number of stages.
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int
    depth: tuple[int, ...]
    heads: int | tuple[int, ...]
    mlp_dim: int | tuple[int, ...]
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    channels: int = 3
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        overlap = min(pair("patch_size", self.patch_size)) >= 2
        expect(self, "patch_size", overlap, "at least 2, as patches overlap by half")
        has_stages = isinstance(self.depth, tuple | list) and len(self.depth) > 0
        expect(self, "depth", has_stages, "a tuple, the number of blocks in each stage")
        for name in ("heads", "mlp_dim"):
            per_stage(self, name, len(self.depth))
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels, self.image_size)
        patch = pair("patch_size", self.patch_size)
        stride = (patch[0] // 2, patch[1] // 2)
        positions = 1 + math.prod(unfold_grid(pair("image_size", self.image_size), patch, stride))
        init = nn.initializers.normal(0.02)
        cls_token = self.param("cls_token", init, (1, 1, self.dim))
        pos_embedding = self.param("pos_embedding", init, (1, positions, self.dim))

        x = unfold(images, patch, stride)  # (b, rows, columns, values of a patch)
        rows = x.shape[1]
        x = Dense(self.dim, name="to_patch_embedding")(rearrange(x, "b h w c -> b (h w) c"))
        x = prepend(cls_token, x)
        x = x + pos_embedding[:, : x.shape[1]]
        x = nn.Dropout(self.emb_dropout)(x, deterministic=not train)

        heads, mlp_dims = per_stage(self, "heads", len(self.depth)), per_stage(self, "mlp_dim", len(self.depth))
        rates = stage_rates(self.drop_path, self.depth)
        for i, depth in enumerate(self.depth):
            if i > 0:
                x = Pool(rows, name=f"pool_{i - 1}")(x)
                rows = (rows + 1) // 2  # as `Pool` rounds
            sizes = depth, heads[i], self.dim_head, mlp_dims[i]
            x = Transformer(*sizes, self.dropout, rates[i], name=f"stage_{i}")(x, train=train)
        return NormHead(self.num_classes, name="mlp_head")(x[:, 0]) if self.num_classes else x

    def torch_rules(self) -> tuple[tuple[str, str], ...]:
        """Upstream's stages and pools alternate in one Sequential."""
        stages = range(len(self.depth))
        return (
            ("to_patch_embedding", "to_patch_embedding.2"),
            *((f"stage_{i}", f"layers.{2 * i}") for i in stages),
            *((f"pool_{i}", f"layers.{2 * i + 1}") for i in stages),
            ("depthwise", "downsample.net.0"),
            ("pointwise", "downsample.net.1"),
            *TRANSFORMER_RULES,
            *HEAD_RULES,
        )


def _paper(patch_size, dim, depth, heads, dim_head):
    stages = dict(depth=depth, heads=(heads, 2 * heads, 4 * heads), mlp_dim=(4 * dim, 8 * dim, 16 * dim))
    return dict(image_size=224, patch_size=patch_size, dim=dim, dim_head=dim_head, **stages)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=8, dim=48, depth=(2, 2), heads=(3, 6), dim_head=16, mlp_dim=(96, 192)),
    "ti": _paper(16, 64, (2, 6, 4), 2, 32),
    "xs": _paper(16, 96, (2, 6, 4), 2, 48),
    "s": _paper(16, 144, (2, 6, 4), 3, 48),
    "b": _paper(14, 256, (3, 6, 4), 4, 64),
}
