"""Twins-SVT: attention within windows, alternating with attention over a subsampled map.

Derives from the frame `MapViT` and defines how the map is computed.

Source: Chu et al. 2021, arXiv:2104.13840. Upstream: vit_pytorch/twins_svt.py.
Differs from upstream: any number of `channels`; `num_classes=0` gives the last feature map; `image_size` may be given,
and is then checked at construction.
Differs from the paper: 8 heads of 64 in every stage (paper: a head for every 32 features); positions come after the
first pair of blocks (paper: after its first block); no norm of the subsampled map, and none before the head.
Axes: b batch, r rows, c columns (of a feature map), h heads, i query, j key, d features, k classes.
"""

from typing import ClassVar

from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames import MapViT
from vit_jax.frames.rules import attention_rules, feed_forward_rules, sequential_rules
from vit_jax.layers import (
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
from vit_jax.layers.check import at_least, check_sides, expect
from vit_jax.layers.shapes import Images, Maps

HEADS, DIM_HEAD = 8, 64
STAGE = ("emb_dim", "patch_size", "local_patch_size", "global_k", "depth")  # arguments that each stage has


class PatchEmbedding(nn.Module):
    """Merge patches of `patch_size` by `patch_size` pixels into one pixel: a linear map between two norms."""

    dim: int
    patch_size: int

    @nn.compact
    def __call__(self, x: Maps) -> Float[Array, "b r c e"]:
        x = rearrange(x, "b (r p) (c q) d -> b r c (d p q)", p=self.patch_size, q=self.patch_size)
        x = PointwiseConv(self.dim, name="proj")(ChannelNorm(name="norm_in")(x))
        return ChannelNorm(name="norm_out")(x)


class LocalAttention(nn.Module):
    """Attention within windows of `window` by `window` pixels; there is no dropout of attention maps."""

    window: int
    dropout: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        pixels, sides = ChannelNorm(name="norm")(x), dict(p=self.window, q=self.window)
        q = PointwiseConv(HEADS * DIM_HEAD, use_bias=False, name="to_q")(pixels)
        kv = PointwiseConv(2 * HEADS * DIM_HEAD, use_bias=False, name="to_kv")(pixels)
        q = rearrange(q, "b (r p) (c q) (h d) -> b r c h (p q) d", h=HEADS, **sides)
        k, v = rearrange(kv, "b (r p) (c q) (kv h d) -> kv b r c h (p q) d", kv=2, h=HEADS, **sides)
        out = rearrange(attend(self, q, k, v), "b r c (p q) e -> b (r p) (c q) e", **sides)
        return nn.Dropout(self.dropout)(PointwiseConv(x.shape[-1], name="to_out")(out), deterministic=not train)


class GlobalAttention(nn.Module):
    """Attention of every pixel over the map subsampled by a convolution of stride `stride`."""

    stride: int
    dropout: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        pixels, window = ChannelNorm(name="norm")(x), (self.stride, self.stride)
        q = PointwiseConv(HEADS * DIM_HEAD, use_bias=False, name="to_q")(pixels)
        kv = nn.Conv(2 * HEADS * DIM_HEAD, window, window, padding="VALID", use_bias=False, name="to_kv")(pixels)
        q = rearrange(q, "b r c (h d) -> b h (r c) d", h=HEADS)
        k, v = rearrange(kv, "b r c (kv h d) -> kv b h (r c) d", kv=2, h=HEADS)
        out = attend(self, q, k, v, dropout=self.dropout, train=train).reshape(*x.shape[:3], HEADS * DIM_HEAD)
        return nn.Dropout(self.dropout)(PointwiseConv(x.shape[-1], name="to_out")(out), deterministic=not train)


class Transformer(nn.Module):
    """`depth` pairs of blocks: attention within windows, unless `window` is None, and global attention."""

    depth: int
    window: int | None
    stride: int
    dropout: float
    drop_path: tuple[float, ...]

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        for i, drop_path in enumerate(drop_paths(self, self.drop_path, self.depth, train)):
            if self.window is not None:
                local_attention = LocalAttention(self.window, self.dropout, name=f"local_attn_{i}")
                x = x + drop_path(local_attention(x, train=train))
                feed_forward = ConvFeedForward(4 * x.shape[-1], self.dropout, name=f"local_ff_{i}")
                x = x + drop_path(feed_forward(x, train=train))
            x = x + drop_path(GlobalAttention(self.stride, self.dropout, name=f"global_attn_{i}")(x, train=train))
            feed_forward = ConvFeedForward(4 * x.shape[-1], self.dropout, name=f"global_ff_{i}")
            x = x + drop_path(feed_forward(x, train=train))
            sow_block(self, x)
        return x


class TwinsSVT(MapViT, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, h, w, d).

    There are four stages, whose arguments begin with s1_ to s4_.

    Args:
        num_classes: number of classes; 0 for the last feature map.
        channels: channels of an image.
        image_size: pixels, or (height, width); optional, only checked at construction.
        s1_emb_dim: width of a pixel of the map in stage 1.
        s1_patch_size: side of the patches that stage 1 merges, in pixels of its input.
        s1_local_patch_size: side of a window in stage 1, in pixels of the map.
        s1_global_k: stride of the subsampling in stage 1.
        s1_depth: pairs of blocks in stage 1 after the first.
        s2_emb_dim: width of a pixel of the map in stage 2.
        s2_patch_size: side of the patches that stage 2 merges, in pixels of its input.
        s2_local_patch_size: side of a window in stage 2, in pixels of the map.
        s2_global_k: stride of the subsampling in stage 2.
        s2_depth: pairs of blocks in stage 2 after the first.
        s3_emb_dim: width of a pixel of the map in stage 3.
        s3_patch_size: side of the patches that stage 3 merges, in pixels of its input.
        s3_local_patch_size: side of a window in stage 3, in pixels of the map.
        s3_global_k: stride of the subsampling in stage 3.
        s3_depth: pairs of blocks in stage 3 after the first.
        s4_emb_dim: width of a pixel of the map in stage 4.
        s4_patch_size: side of the patches that stage 4 merges, in pixels of its input.
        s4_local_patch_size: ignored, as the last stage has no windows.
        s4_global_k: stride of the subsampling in stage 4.
        s4_depth: pairs of blocks in stage 4 after the first.
        peg_kernel_size: side of the convolutions that encode positions; odd.
        dropout: rate within the blocks.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if patches and windows do not tile an image, or a map is smaller than its
            `global_k`.
    """

    head_class: ClassVar = Dense
    s1_emb_dim: int = 64
    s1_patch_size: int = 4
    s1_local_patch_size: int = 7
    s1_global_k: int = 7
    s1_depth: int = 1
    s2_emb_dim: int = 128
    s2_patch_size: int = 2
    s2_local_patch_size: int = 7
    s2_global_k: int = 7
    s2_depth: int = 1
    s3_emb_dim: int = 256
    s3_patch_size: int = 2
    s3_local_patch_size: int = 7
    s3_global_k: int = 7
    s3_depth: int = 5
    s4_emb_dim: int = 512
    s4_patch_size: int = 2
    s4_local_patch_size: int = 7
    s4_global_k: int = 7
    s4_depth: int = 4
    peg_kernel_size: int = 3
    dropout: float = 0.0

    def check(self):
        at_least(self, **{f"s{i}_{name}": int(name != "depth") for i in range(1, 5) for name in STAGE})
        expect(
            self,
            "peg_kernel_size",
            max(0, self.peg_kernel_size) % 2 == 1,
            "an odd number, so that maps keep their size",
        )

    def check_size(self, size, name="image_size"):
        check_sides(name, size, self._fits)

    def _fits(self, side: int) -> bool:
        for i, (_, patch, window, stride, _) in enumerate(self._stages()):
            side, rest = divmod(side, patch)
            if rest or side < stride or (i < 3 and side % window):
                return False
        return True

    def _stages(self) -> list[list[int]]:
        """Values of the arguments in `STAGE`, for each stage."""
        return [[getattr(self, f"s{i}_{name}") for name in STAGE] for i in range(1, 5)]

    def maps(self, images: Images, *, train: bool) -> Maps:
        x, stages = images, self._stages()
        rates = stage_rates(self.drop_path, [1 + depth for *_, depth in stages])
        for i, (dim, patch, window, stride, depth) in enumerate(stages):
            attention = (window if i < 3 else None, stride, self.dropout)
            x = PatchEmbedding(dim, patch, name=f"embed_{i}")(x)
            x = Transformer(1, *attention, rates[i][:1], name=f"first_{i}")(x, train=train)
            x = x + DepthwiseConv(self.peg_kernel_size, name=f"peg_{i}")(x)
            x = Transformer(depth, *attention, rates[i][1:], name=f"rest_{i}")(x, train=train)
        return x

    torch_rules = (
        *sequential_rules(r"embed_(\d+)", r"layers.\1.0.proj", norm_in=0, proj=1, norm_out=2),
        (r"peg_(\d+)", r"layers.\1.2.proj.fn"),
        (r"first_(\d+)", r"layers.\1.1"),
        (r"rest_(\d+)", r"layers.\1.3"),
        *attention_rules(r"local_attn_(\d+)", r"layers.\1.0.fn"),
        *feed_forward_rules(r"local_ff_(\d+)", r"layers.\1.1.fn.net"),
        *attention_rules(r"global_attn_(\d+)", r"layers.\1.2.fn"),
        *feed_forward_rules(r"global_ff_(\d+)", r"layers.\1.3.fn.net"),
        ("head", "layers.6"),
    )


def _stages(**arguments):
    return {f"s{i + 1}_{name}": value for name, values in arguments.items() for i, value in enumerate(values)}


def _paper(dim, *depths):
    """Sizes of the paper; maps are subsampled to 7 x 7 pixels.

    `depths` are the pairs of blocks after the first, in the last two stages.
    """
    dims = (dim, 2 * dim, 4 * dim, 8 * dim)
    return dict(image_size=224) | _stages(emb_dim=dims, depth=(0, 0, *depths), global_k=(8, 4, 2, 1))


_TINY = _stages(emb_dim=(16, 16, 24, 32), depth=(0,) * 4, local_patch_size=(4, 2, 2, 1), global_k=(2, 2, 1, 1))
PRESETS = {"tiny": dict(image_size=32) | _TINY, "s": _paper(64, 4, 3), "b": _paper(96, 8, 1), "l": _paper(128, 8, 1)}
