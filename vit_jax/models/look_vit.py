"""LookupViT: a few tokens do most of the computation and exchange information with many of high resolution.

Source: Koner et al. 2024, arXiv:2407.12753. Upstream: vit_pytorch/look_vit.py.
Differs from upstream: images and patches may be non-square; an image may have any size that patches fill;
`num_classes=0` gives both sets of tokens.
Differs from the paper: a convolution over neighbouring patches projects them; norms have a scale of 1 + gamma and no
bias.
Axes: b batch, n tokens, m tokens of the context, d dim, h heads, i query, j key, k classes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import feed_forward_rules
from vit_jax.layers import Dense, FeedForward, drop_paths, sincos_2d, softmax, sow_block, standardize
from vit_jax.layers.check import expect, pair, patch_grid
from vit_jax.layers.shapes import Images, Tokens

Context, Scores = Float[Array, "b m d"], Float[Array, "b h n m"]


class OffsetNorm(nn.Module):
    """Layer normalisation with the scale 1 + gamma, and no bias."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        gamma = self.param("gamma", nn.initializers.zeros, x.shape[-1:])
        y = standardize(x, 1e-5) * (1 + jnp.expand_dims(gamma, range(x.ndim - 1)))
        return y.astype(jnp.result_type(x, gamma))


class Attention(nn.Module):
    """Attention of `x` over itself or over a context, which also returns its scores before the softmax.

    Given the `scores` of another attention, it uses these to weight the values of the context, and
    does not read `x`.
    """

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Tokens, context: Context | None = None, scores: Scores | None = None, *, train: bool = False
    ) -> tuple[Tokens, Scores]:
        project = lambda name, x: Dense(self.heads * self.dim_head, use_bias=False, name=name)(x)
        heads = lambda name, x: rearrange(project(name, x), "b n (h d) -> b h n d", h=self.heads)
        if context is not None:
            context = OffsetNorm(name="norm_context")(context)
        if scores is None:
            x = OffsetNorm(name="norm")(x)
            context = x if context is None else context
            q, k = heads("to_q", x), heads("to_k", context)
            scores = jnp.einsum("bhid,bhjd->bhij", q * self.dim_head**-0.5, k)
        attn = softmax(scores)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, heads("to_v", context)), "b h n d -> b n (h d)")
        out = Dense(x.shape[-1], use_bias=False, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train), scores


class LookViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to both sets of tokens, the few first.

    The few tokens are the map of high-resolution patches, resized to the grid that patches of
    `patch_size` have. An image may have any size that patches fill.

    Args:
        dim: width of a token, a multiple of 4.
        image_size: pixels, or (height, width); only checked against both patch sizes.
        num_classes: number of classes; 0 for both sets of tokens.
        depth: number of blocks.
        patch_size: pixels, or (height, width), of the few tokens.
        heads: attention heads in each block.
        mlp_factor: hidden width of the feed-forward of the few tokens, as a multiple of `dim`.
        dim_head: width of a head.
        highres_patch_size: pixels, or (height, width), of the high-resolution tokens.
        highres_mlp_factor: hidden width of the feed-forward of the high-resolution tokens, as a
            multiple of `dim`.
        cross_attn_heads: heads of the attention between both sets.
        cross_attn_dim_head: width of a head of this attention.
        patch_conv_kernel_size: side of the convolution that embeds the patches, in patches; odd.
        dropout: rate within the blocks.
        channels: channels of an image.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` or `highres_patch_size` does not divide `image_size`,
            `patch_size` is not the larger one, `patch_conv_kernel_size` is even, or `dim` is not a
            multiple of 4 above 4.
    """

    dim: int
    image_size: int | tuple[int, int]
    num_classes: int
    depth: int = 3
    patch_size: int | tuple[int, int] = 16
    heads: int = 8
    mlp_factor: int | float = 4
    dim_head: int = 64
    highres_patch_size: int | tuple[int, int] = 12
    highres_mlp_factor: int | float = 4
    cross_attn_heads: int = 8
    cross_attn_dim_head: int = 64
    patch_conv_kernel_size: int = 7
    dropout: float = 0.1
    channels: int = 3
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        patch_grid(pair("image_size", self.image_size), self.highres_patch_size, "highres_patch_size")
        sides = zip(pair("patch_size", self.patch_size), pair("", self.highres_patch_size), strict=True)
        larger = all(side > highres for side, highres in sides)
        expect(self, "patch_size", larger, f"more than highres_patch_size={self.highres_patch_size!r}")
        expect(self, "patch_conv_kernel_size", self.patch_conv_kernel_size % 2 == 1, "an odd number")
        sincos_2d(1, 1, self.dim)  # raises ValueError for an unsuitable dim
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Float[Array, "b k"] | tuple[Tokens, Context]:
        check_images(images, self.channels)
        few = patch_grid(images.shape[1:3], self.patch_size)
        rows, columns = patch_grid(images.shape[1:3], self.highres_patch_size, "highres_patch_size")
        stored = math.prod(patch_grid(self.image_size, self.highres_patch_size))
        self.param("pos_embedding", nn.initializers.normal(0.02), (stored, self.dim))  # upstream never reads it either
        patches = rearrange(images, "b (h ph) (w pw) c -> b h w (ph pw c)", h=rows, w=columns)
        patches = nn.Conv(self.dim, (self.patch_conv_kernel_size,) * 2, name="to_patches")(patches)
        positions = jnp.asarray(sincos_2d(rows, columns, self.dim), patches.dtype).reshape(1, rows, columns, self.dim)
        patches = OffsetNorm(name="patch_norm")(patches) + positions
        x = jax.image.resize(patches, (patches.shape[0], *few, self.dim), "bilinear", antialias=False)
        x, highres = (rearrange(grid, "b h w d -> b (h w) d") for grid in (x, patches))

        attention = functools.partial(Attention, self.heads, self.dim_head, self.dropout)
        cross = functools.partial(Attention, self.cross_attn_heads, self.cross_attn_dim_head, self.dropout)
        feed_forward = lambda factor, name: FeedForward(int(self.dim * factor), self.dropout, OffsetNorm, name=name)
        for i, drop_path in enumerate(drop_paths(self, self.drop_path, self.depth, train)):
            out, scores = cross(name=f"lookup_{i}")(x, highres, train=train)
            x = x + drop_path(out)
            x = x + drop_path(attention(name=f"attn_{i}")(x, train=train)[0])
            x = x + drop_path(feed_forward(self.mlp_factor, f"ff_{i}")(x, train=train))

            out, _ = cross(name=f"highres_attn_{i}")(highres, x, scores.swapaxes(-1, -2), train=train)
            highres = highres + drop_path(out)
            highres = OffsetNorm(name=f"highres_norm_{i}")(highres)
            out = feed_forward(self.highres_mlp_factor, f"highres_ff_{i}")(highres, train=train)
            highres = highres + drop_path(out)
            sow_block(self, (x, highres))

        x, highres = OffsetNorm(name="norm")(x), OffsetNorm(name="highres_norm")(highres)
        if not self.num_classes:
            return x, highres
        return Dense(self.num_classes, use_bias=False, name="to_logits")(x.mean(axis=1) + highres.mean(axis=1))

    torch_rules = (
        ("to_patches", "to_patches.1"),
        ("patch_norm", "to_patches.3"),
        ("to_out", "to_out.1"),
        (r"attn_(\d+)", r"layers.\1.0"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1"),
        (r"lookup_(\d+)", r"layers.\1.2"),
        (r"highres_attn_(\d+)", r"layers.\1.3"),
        (r"highres_norm_(\d+)", r"layers.\1.4"),
        *feed_forward_rules(r"highres_ff_(\d+)", r"layers.\1.5"),
    )


_SIZES = dict(image_size=32, patch_size=8, highres_patch_size=4, dim=64, depth=3, heads=4, dim_head=16, mlp_factor=2)
_CROSS = dict(highres_mlp_factor=1, cross_attn_heads=4, cross_attn_dim_head=16, patch_conv_kernel_size=3)
PRESETS = {"tiny": _SIZES | _CROSS | dict(dropout=0.0)}
