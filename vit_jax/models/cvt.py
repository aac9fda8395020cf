"""CvT: a transformer over a feature map whose queries, keys and values are computed by convolutions.

Derives from the frame `MapViT` and defines how the map is computed.

Source: Wu et al. 2021, arXiv:2103.15808. Upstream: vit_pytorch/cvt.py.
Differs from upstream: `num_classes=0` gives the last feature map; `image_size` may be given, and is
then checked at construction.
Differs from the paper: no class token and no last norm, the head reads the mean; keys and values share a convolution.
Axes: b batch, r rows, c columns (of a feature map), h heads, i query, j key, d features, k classes.
"""

from typing import ClassVar

from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames import MapViT
from vit_jax.frames.rules import attention_rules, feed_forward_rules, sequential_rules
from vit_jax.layers import (
    BatchNorm,
    ChannelNorm,
    ConvFeedForward,
    Dense,
    DepthwiseConv,
    PointwiseConv,
    attend,
    drop_paths,
    sow_block,
    stage_rates,
)
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.shapes import Images, Maps

# Arguments that each stage has.
STAGE = ("emb_dim", "emb_kernel", "emb_stride", "proj_kernel", "kv_proj_stride", "heads", "depth", "mlp_mult")


class ConvProjection(nn.Module):
    """Depthwise separable convolution: a depthwise convolution, a batch norm, a pointwise convolution."""

    features: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b r2 c2 e"]:
        x = DepthwiseConv(self.kernel, self.stride, use_bias=False, name="depthwise")(x)
        x = BatchNorm(name="norm")(x, train=train)
        return PointwiseConv(self.features, use_bias=False, name="pointwise")(x)


class Attention(nn.Module):
    """Attention over a feature map with convolutional projections; keys and values are subsampled by `kv_stride`."""

    heads: int
    proj_kernel: int
    kv_stride: int
    dropout: float
    dim_head: int = 64

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        pixels, inner_dim = ChannelNorm(name="norm")(x), self.heads * self.dim_head
        q = ConvProjection(inner_dim, self.proj_kernel, 1, name="to_q")(pixels, train=train)
        kv = ConvProjection(2 * inner_dim, self.proj_kernel, self.kv_stride, name="to_kv")(pixels, train=train)
        q = rearrange(q, "b r c (h d) -> b h (r c) d", h=self.heads)
        k, v = rearrange(kv, "b r c (kv h d) -> kv b h (r c) d", kv=2, h=self.heads)
        out = attend(self, q, k, v, dropout=self.dropout, train=train).reshape(*x.shape[:3], inner_dim)
        return nn.Dropout(self.dropout)(PointwiseConv(x.shape[-1], name="to_out")(out), deterministic=not train)


class CvT(MapViT, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, h, w, d).

    There are three stages, whose arguments begin with s1_, s2_ and s3_. An image may have any size.

    Args:
        num_classes: number of classes; 0 for the last feature map.
        channels: channels of an image.
        image_size: pixels, or (height, width); optional, only checked at construction.
        s1_emb_dim: width of a pixel of the map in stage 1.
        s1_emb_kernel: side of the convolution that begins stage 1, in pixels.
        s1_emb_stride: stride of this convolution.
        s1_proj_kernel: side of the convolutions of queries, keys and values in stage 1; odd.
        s1_kv_proj_stride: stride of the convolutions of keys and values in stage 1.
        s1_heads: attention heads in stage 1.
        s1_depth: number of blocks in stage 1.
        s1_mlp_mult: hidden width of a feed-forward in stage 1, as a multiple of `s1_emb_dim`.
        s2_emb_dim: width of a pixel of the map in stage 2.
        s2_emb_kernel: side of the convolution that begins stage 2, in pixels.
        s2_emb_stride: stride of this convolution.
        s2_proj_kernel: side of the convolutions of queries, keys and values in stage 2; odd.
        s2_kv_proj_stride: stride of the convolutions of keys and values in stage 2.
        s2_heads: attention heads in stage 2.
        s2_depth: number of blocks in stage 2.
        s2_mlp_mult: hidden width of a feed-forward in stage 2, as a multiple of `s2_emb_dim`.
        s3_emb_dim: width of a pixel of the map in stage 3.
        s3_emb_kernel: side of the convolution that begins stage 3, in pixels.
        s3_emb_stride: stride of this convolution.
        s3_proj_kernel: side of the convolutions of queries, keys and values in stage 3; odd.
        s3_kv_proj_stride: stride of the convolutions of keys and values in stage 3.
        s3_heads: attention heads in stage 3.
        s3_depth: number of blocks in stage 3.
        s3_mlp_mult: hidden width of a feed-forward in stage 3, as a multiple of `s3_emb_dim`.
        dropout: rate within the blocks.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if a `proj_kernel` is even.
    """

    head_class: ClassVar = Dense
    s1_emb_dim: int = 64
    s1_emb_kernel: int = 7
    s1_emb_stride: int = 4
    s1_proj_kernel: int = 3
    s1_kv_proj_stride: int = 2
    s1_heads: int = 1
    s1_depth: int = 1
    s1_mlp_mult: int = 4
    s2_emb_dim: int = 192
    s2_emb_kernel: int = 3
    s2_emb_stride: int = 2
    s2_proj_kernel: int = 3
    s2_kv_proj_stride: int = 2
    s2_heads: int = 3
    s2_depth: int = 2
    s2_mlp_mult: int = 4
    s3_emb_dim: int = 384
    s3_emb_kernel: int = 3
    s3_emb_stride: int = 2
    s3_proj_kernel: int = 3
    s3_kv_proj_stride: int = 2
    s3_heads: int = 6
    s3_depth: int = 10
    s3_mlp_mult: int = 4
    dropout: float = 0.0

    def check(self):
        at_least(self, **{f"s{i}_{name}": int(name != "depth") for i in range(1, 4) for name in STAGE})
        for name in ("s1_proj_kernel", "s2_proj_kernel", "s3_proj_kernel"):
            expect(self, name, getattr(self, name) % 2 == 1, "an odd number, so that the map of queries keeps its size")

    def maps(self, images: Images, *, train: bool) -> Maps:
        x, rates = images, stage_rates(self.drop_path, (self.s1_depth, self.s2_depth, self.s3_depth))
        for i in range(3):
            arguments = (getattr(self, f"s{i + 1}_{name}") for name in STAGE)
            dim, kernel, stride, proj_kernel, kv_stride, heads, depth, mlp_mult = arguments
            x = nn.Conv(dim, (kernel, kernel), stride, padding=kernel // 2, name=f"embed_{i}")(x)
            x = ChannelNorm(name=f"norm_{i}")(x)
            for j, drop_path in enumerate(drop_paths(self, rates[i], depth, train)):
                attention = Attention(heads, proj_kernel, kv_stride, self.dropout, name=f"attn_{i}_{j}")
                x = x + drop_path(attention(x, train=train))
                feed_forward = ConvFeedForward(mlp_mult * dim, self.dropout, name=f"ff_{i}_{j}")
                x = x + drop_path(feed_forward(x, train=train))
                sow_block(self, x)
        return x

    torch_rules = (
        *attention_rules(r"attn_(\d+)_(\d+)", r"layers.\1.2.layers.\2.0"),
        *feed_forward_rules(r"ff_(\d+)_(\d+)", r"layers.\1.2.layers.\2.1.net"),
        (r"embed_(\d+)", r"layers.\1.0"),
        (r"norm_(\d+)", r"layers.\1.1"),
        *sequential_rules(r"(to_q|to_kv)", r"\1.net", depthwise=0, norm=1, pointwise=2),
        ("head", "to_logits.2"),
    )


_TINY = dict(s1_emb_dim=32, s1_emb_kernel=3, s1_emb_stride=2, s2_emb_dim=48, s2_heads=1, s2_depth=1)
_WIDE = dict(s1_emb_dim=192, s1_heads=3, s1_depth=2, s2_emb_dim=768, s2_heads=12, s3_emb_dim=1024, s3_heads=16)

PRESETS = {
    "tiny": dict(image_size=32, **_TINY, s3_emb_dim=64, s3_heads=1, s3_depth=2),
    "13": dict(image_size=224),
    "21": dict(image_size=224, s2_depth=4, s3_depth=16),
    "w24": dict(image_size=384, **_WIDE, s3_depth=20),
}
