"""CrossFormer: embeddings of patches of several sizes, and attention alternately to near and to distant pixels.

Derives from the frame `MapViT` and defines how the map is computed.

Source: Wang et al. 2021, arXiv:2108.00154. Upstream: vit_pytorch/crossformer.py.
Differs from upstream: `paper_position_bias` computes position biases as the paper does; `num_classes=0` gives the last
feature map; `image_size` may be given, and is then checked at construction.
Differs from the paper: without `paper_position_bias`, biases belong to wrong offsets, as upstream indexes their table
with a row length that is not the table's; heads share one bias; blocks come in pairs; no norm before the head.
Axes: b batch, r rows, c columns (of a feature map), h heads, i query, j key, d features, k classes.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.map_vit import MapViT
from vit_jax.frames.rules import feed_forward_rules, sequential_rules
from vit_jax.layers import (
    ChannelNorm,
    ConvFeedForward,
    Dense,
    LayerNorm,
    PointwiseConv,
    attend,
    drop_paths,
    relative_positions,
    sow_block,
    stage_rates,
)
from vit_jax.layers.check import at_least, check_sides, expect
from vit_jax.layers.shapes import Images, Maps

DIM_HEAD = 32
WINDOWS = {"short": "b (r p) (c q)", "long": "b (p r) (q c)"}  # neighbouring pixels; pixels at equal distances
STAGE = ("dim", "depth", "local_window_size", "global_window_size", "cross_embed_kernel_sizes", "cross_embed_strides")


class CrossEmbed(nn.Module):
    """Concatenated convolutions with several `kernels` around the same pixels; larger kernels have fewer features."""

    dim: int
    kernels: tuple[int, ...]
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b r c d"]) -> Float[Array, "b r2 c2 e"]:
        dims = [self.dim // 2**i for i in range(1, len(self.kernels))]
        maps = []
        for i, (kernel, dim) in enumerate(zip(sorted(self.kernels), [*dims, self.dim - sum(dims)], strict=True)):
            padding = (kernel - self.stride) // 2
            maps.append(nn.Conv(dim, (kernel, kernel), self.stride, padding=padding, name=f"convs_{i}")(x))
        return jnp.concatenate(maps, axis=-1)


class PositionBias(nn.Module):
    """Small network that maps the offset (dy, dx) between two pixels of a window to their bias: (i, j).

    With `paper_offsets` each pair gets the bias of its own offset, else that of upstream's wrong
    one.
    """

    dim: int
    window: int
    paper_offsets: bool

    @nn.compact
    def __call__(self, dtype: jnp.dtype) -> Float[Array, "i j"]:
        reach = self.window - self.paper_offsets
        x = jnp.asarray(np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T, dtype)
        for i in range(3):
            x = jax.nn.relu(LayerNorm(name=f"norm_{i}")(Dense(self.dim, name=f"fc_{i}")(x)))
        return Dense(1, name="fc_3")(x)[:, 0][relative_positions(self.window)]


class Attention(nn.Module):
    """Attention in groups of `window` by `window` pixels: neighbours ("short") or spread over the map ("long")."""

    reach: str
    window: int
    paper_position_bias: bool
    dropout: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        pixels, window = WINDOWS[self.reach], dict(p=self.window, q=self.window)
        dim, inner_dim = x.shape[-1], x.shape[-1] // DIM_HEAD * DIM_HEAD
        qkv = PointwiseConv(3 * inner_dim, use_bias=False, name="to_qkv")(ChannelNorm(name="norm")(x))
        q, k, v = rearrange(qkv, f"{pixels} (qkv h d) -> qkv b r c h (p q) d", qkv=3, d=DIM_HEAD, **window)
        bias = PositionBias(dim // 4, self.window, self.paper_position_bias, name="dpb")(x.dtype)
        out = attend(self, q, k, v, bias=bias[None, None, None, None], dropout=self.dropout, train=train)
        return PointwiseConv(dim, name="to_out")(rearrange(out, f"b r c (p q) e -> {pixels} e", **window))


class CrossFormer(MapViT, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, h, w, d).

    There are four stages, each with its own map. An argument described as "per stage" takes one
    value for all stages or a tuple of four. Heads have 32 features.

    Args:
        num_classes: number of classes; 0 for the last feature map.
        channels: channels of an image.
        image_size: pixels, or (height, width); optional, only checked at construction.
        dim: width of a pixel of the map, per stage; at least 32.
        depth: number of pairs of blocks, per stage.
        global_window_size: side, in pixels, of the groups of distant pixels that attend to each
            other, per stage.
        local_window_size: side, in pixels, of the windows of near pixels that attend to each other,
            per stage.
        cross_embed_kernel_sizes: sides of the convolutions that begin a stage, a tuple of numbers
            for each stage.
        cross_embed_strides: stride of these convolutions, per stage.
        attn_dropout: rate on the attention maps.
        ff_dropout: rate within the feed-forwards.
        paper_position_bias: compute position biases as the paper does; False as upstream does, for
            its weights.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `dim` is below 32, the kernels of a stage give maps of different sizes, or
            windows do not tile the maps of an image.
    """

    head_class: ClassVar = Dense
    dim: int | tuple[int, ...] = (64, 128, 256, 512)
    depth: int | tuple[int, ...] = (2, 2, 8, 2)
    global_window_size: int | tuple[int, ...] = (8, 4, 2, 1)
    local_window_size: int | tuple[int, ...] = 7
    cross_embed_kernel_sizes: tuple[tuple[int, ...], ...] = ((4, 8, 16, 32), (2, 4), (2, 4), (2, 4))
    cross_embed_strides: int | tuple[int, ...] = (4, 2, 2, 2)
    num_classes: int = 1000
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    paper_position_bias: bool = False

    def check(self):
        at_least(self, dim=DIM_HEAD, global_window_size=1, local_window_size=1, cross_embed_strides=1)
        for *_, kernels, stride in self._stages():
            fits = min(kernels) >= stride and len({kernel % 2 for kernel in kernels}) == 1
            expected = "all odd or all even ones in a stage, none below its stride in cross_embed_strides"
            expect(self, "cross_embed_kernel_sizes", fits, f"{expected}={self.cross_embed_strides!r}")

    def check_size(self, size, name="image_size"):
        check_sides(name, size, self._fits)

    def _stages(self) -> list[tuple]:
        """Values of the arguments in `STAGE`, for each stage."""
        four = lambda value: 4 * (value,) if isinstance(value, int) else tuple(value)
        for name in STAGE:
            expect(self, name, len(four(getattr(self, name))) == 4, "one for each of four stages")
        return list(zip(*(four(getattr(self, name)) for name in STAGE), strict=True))

    def _fits(self, side: int) -> bool:
        for _, _, short, long, kernels, stride in self._stages():
            side = (side - stride - (kernels[0] - stride) % 2) // stride + 1
            if side < 1 or side % short or side % long:
                return False
        return True

    def maps(self, images: Images, *, train: bool) -> Maps:
        x = images
        stages = self._stages()
        rates = stage_rates(self.drop_path, [depth for _, depth, *_ in stages])
        for i, (dim, depth, short, long, kernels, stride) in enumerate(stages):
            x = CrossEmbed(dim, tuple(kernels), stride, name=f"embed_{i}")(x)
            for j, drop_path in enumerate(drop_paths(self, rates[i], depth, train)):
                for reach, window in (("short", short), ("long", long)):
                    sizes = (reach, window, self.paper_position_bias, self.attn_dropout)
                    x = x + drop_path(Attention(*sizes, name=f"{reach}_attn_{i}_{j}")(x, train=train))
                    dropout = dict(dropout=self.ff_dropout, last_dropout=0.0)
                    feed_forward = ConvFeedForward(4 * dim, **dropout, name=f"{reach}_ff_{i}_{j}")
                    x = x + drop_path(feed_forward(x, train=train))
                    sow_block(self, x)
        return x

    torch_rules = (
        (r"embed_(\d+)/convs_(\d+)", r"layers.\1.0.convs.\2"),
        *feed_forward_rules(r"short_ff_(\d+)_(\d+)", r"layers.\1.1.layers.\2.1"),
        *feed_forward_rules(r"long_ff_(\d+)_(\d+)", r"layers.\1.1.layers.\2.3"),
        (r"short_attn_(\d+)_(\d+)", r"layers.\1.1.layers.\2.0"),
        (r"long_attn_(\d+)_(\d+)", r"layers.\1.1.layers.\2.2"),
        *sequential_rules("dpb", "dpb", fc_0=0, norm_0=1, fc_1=3, norm_1=4, fc_2=6, norm_2=7, fc_3=9),
        ("head", "to_logits.1"),
    )


def _paper(dim, depth):
    """Sizes of the paper: groups of 7 x 7 pixels, near and distant; half as many pairs as the paper has blocks."""
    dims = (dim, 2 * dim, 4 * dim, 8 * dim)
    return dict(image_size=224, dim=dims, depth=(1, 1, depth, 1), global_window_size=7, paper_position_bias=True)


_TINY = dict(image_size=32, dim=(32, 32, 64, 64), depth=1, global_window_size=(4, 4, 2, 1))
_TINY |= dict(local_window_size=(4, 4, 2, 1), cross_embed_kernel_sizes=((4, 8), (2, 4), (2, 4), (2, 4)))
PRESETS = {"tiny": _TINY, "s": _paper(96, 3), "b": _paper(96, 9), "l": _paper(128, 9)}
