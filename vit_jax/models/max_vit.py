"""MaxViT: convolution, attention within windows and attention over a dilated grid, in every block.

Derives from the frame `MapViT` and defines how the map is computed.

Source: Tu et al. 2022, arXiv:2204.01697. Upstream: vit_pytorch/max_vit.py.
Differs from upstream: `mbconv_dropout` drops convolution branches sample by sample (upstream's Dropsample crashes,
and no argument sets its rate); `image_size` may be given, and is then checked at construction; `num_classes=0` gives
the last map; position biases have an initial std of 0.02 (upstream: 1).
Differs from the paper: no norm in the stem; MBConv has no pre-norm, and no shortcut at the start of a stage; no biases
in attention; one linear map as head; squeeze-excitation is four times as wide, except in the paper's presets.
Axes: b batch (times windows), x rows, y columns, n pixels of a window, h heads, i query, j key, d dim, k classes.
"""

import functools
from collections.abc import Callable

import jax
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames import MapViT
from vit_jax.frames.rules import Rules, attention_rules, feed_forward_rules, sequential_rules
from vit_jax.frames.stages import check_depth, check_windows
from vit_jax.layers import (
    BatchNorm,
    Dense,
    DepthwiseConv,
    FeedForward,
    PointwiseConv,
    WindowAttention,
    gelu,
    make_drop_path,
    sow_block,
    stage_rates,
)
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.shapes import Images, Maps

Part = Callable[..., nn.Module]


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze-excitation; without a residual if it downsamples."""

    dim: int
    downsample: bool
    expansion_rate: int | float
    shrinkage_rate: int | float
    dropout: int | float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        hidden_dim = int(self.expansion_rate * self.dim)
        y = gelu(BatchNorm(name="expand_norm")(PointwiseConv(hidden_dim, name="expand")(x), train=train))
        y = DepthwiseConv(kernel=3, stride=2 if self.downsample else 1, name="depthwise")(y)
        y = gelu(BatchNorm(name="depthwise_norm")(y, train=train))
        gate = Dense(int(hidden_dim * self.shrinkage_rate), use_bias=False, name="squeeze")(y.mean(axis=(1, 2)))
        gate = jax.nn.sigmoid(Dense(hidden_dim, use_bias=False, name="excite")(jax.nn.silu(gate)))
        y = PointwiseConv(self.dim, name="project")(y * gate[:, None, None])
        y = BatchNorm(name="project_norm")(y, train=train)
        if self.downsample:
            return y
        # Stochastic depth drops the whole branch of a sample.
        return x + nn.Dropout(self.dropout, broadcast_dims=(1, 2, 3), name="dropsample")(y, deterministic=not train)


# A window has neighbouring pixels; a group of the grid has pixels as far apart as possible.
WINDOWS, GRID = "b (x w1) (y w2) d", "b (w1 x) (w2 y) d"


class Block(nn.Module):
    """MBConv, attention within windows and attention over the grid: (b, x, y, c) to (b, u, v, d).

    `mbconv`, `attention` and `feed_forward` are factories of its modules, called with the name.
    """

    window_size: int
    mbconv: Callable[..., nn.Module]
    attention: Callable[..., nn.Module]
    feed_forward: Callable[..., nn.Module]
    drop_path: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        drop_path = make_drop_path(self, self.drop_path, train)
        x = self.mbconv(name="mbconv")(x, train=train)
        for name, layout in (("window", WINDOWS), ("grid", GRID)):
            x = rearrange(x, f"{layout} -> b x y (w1 w2) d", w1=self.window_size, w2=self.window_size)
            x = x + drop_path(self.attention(name=f"{name}_attn")(x, train=train))
            x = x + drop_path(self.feed_forward(name=f"{name}_ff")(x, train=train))
            x = rearrange(x, f"b x y (w1 w2) d -> {layout}", w1=self.window_size)
        return x


class MaxViT(MapViT, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, h, w, d).

    Args:
        num_classes: number of classes; 0 for the last feature map.
        channels: channels of an image.
        image_size: pixels, or (height, width); optional, only checked at construction.
        dim: width of a pixel of the map in the first stage; it doubles from stage to stage.
        depth: number of blocks in each stage.
        dim_head: width of a head.
        dim_conv_stem: channels of the stem; by default `dim`.
        window_size: side of a window, in pixels of the map.
        mbconv_expansion_rate: hidden width of an MBConv, as a multiple of its output.
        mbconv_shrinkage_rate: width of the squeeze-excitation, as a multiple of the hidden width.
        dropout: rate within attention and feed-forward.
        mbconv_dropout: rate at which the convolution branch of a sample is dropped.
        drop_path: rate of stochastic depth of the other branches in the last block; it rises
            linearly from 0 in the first.

    Raises:
        ValueError: if windows do not tile the maps of an image, or `dim_head` does not divide
            `dim`.
    """

    dim: int
    depth: tuple[int, ...]
    dim_head: int = 32
    dim_conv_stem: int | None = None
    window_size: int = 7
    mbconv_expansion_rate: int | float = 4
    mbconv_shrinkage_rate: int | float = 0.25
    dropout: float = 0.1
    mbconv_dropout: float = 0.0

    def check(self):
        check_depth(self)
        at_least(self, dim_conv_stem=1, window_size=1)
        expect(self, "dim", self.dim % self.dim_head == 0, f"a multiple of dim_head={self.dim_head}")
        expect(self, "mbconv_dropout", 0 <= self.mbconv_dropout <= 1, "0 to 1")

    def check_size(self, size, name="image_size"):
        check_windows(size, (self.window_size,) * len(self.depth))

    def make_block(self, mbconv: Part, feed_forward: Part, drop_path: float, name: str) -> Block:
        """Make a block of the network; variants override this method."""
        attention = functools.partial(WindowAttention, self.dim_head, self.window_size, self.dropout)
        return Block(self.window_size, mbconv, attention, feed_forward, drop_path, name=name)

    def maps(self, images: Images, *, train: bool) -> Maps:
        stem_dim = self.dim_conv_stem or self.dim
        x = nn.Conv(stem_dim, (3, 3), strides=(2, 2), padding=1, name="stem_1")(images)
        x = nn.Conv(stem_dim, (3, 3), padding=1, name="stem_2")(x)
        of_blocks = stage_rates(self.drop_path, self.depth)
        for i, depth in enumerate(self.depth):
            dim, rates = 2**i * self.dim, (self.mbconv_expansion_rate, self.mbconv_shrinkage_rate, self.mbconv_dropout)
            feed_forward = functools.partial(FeedForward, 4 * dim, self.dropout)
            for j in range(depth):
                mbconv = functools.partial(MBConv, dim, j == 0, *rates)
                x = self.make_block(mbconv, feed_forward, of_blocks[i][j], f"stage_{i}_block_{j}")(x, train=train)
                sow_block(self, x)
        return x

    def torch_rules(self, parts: tuple[str, ...] = ("2.fn", "3.fn.net", "6.fn", "7.fn.net")) -> Rules:
        """Upstream has the blocks of all stages in one list.

        `parts` are the keys in a block of window attention, its feed-forward, grid attention, its feed-forward.
        """
        window_attn, window_ff, grid_attn, grid_ff = parts
        blocks = [(f"stage_{i}_block_{j}", j) for i, depth in enumerate(self.depth) for j in range(depth)]
        return (
            # Upstream wraps MBConvs that have a residual, which are those after the first of a stage.
            *((f"{block}/mbconv", f"layers.{n}.0" + (".fn" if j else "")) for n, (block, j) in enumerate(blocks)),
            *((block, f"layers.{n}") for n, (block, _) in enumerate(blocks)),
            ("stem_1", "conv_stem.0"),
            ("stem_2", "conv_stem.1"),
            ("expand", "0"),
            ("expand_norm", "1"),
            ("depthwise", "3"),
            ("depthwise_norm", "4"),
            ("squeeze", "6.gate.1"),
            ("excite", "6.gate.3"),
            ("project", "7"),
            ("project_norm", "8"),
            *attention_rules("window_attn", window_attn),
            *feed_forward_rules("window_ff", window_ff),
            *attention_rules("grid_attn", grid_attn),
            *feed_forward_rules("grid_ff", grid_ff),
            *sequential_rules("head", "mlp_head", norm=1, fc=2),
        )


def _paper(dim, dim_conv_stem, depth):
    return dict(image_size=224, dim=dim, dim_conv_stem=dim_conv_stem, depth=depth, mbconv_shrinkage_rate=1 / 16)


PRESETS = {
    "tiny": dict(image_size=32, dim=32, depth=(1, 1), dim_head=16, window_size=4, mbconv_expansion_rate=2),
    "t": _paper(64, 64, (2, 2, 5, 2)),
    "s": _paper(96, 64, (2, 2, 5, 2)),
    "b": _paper(96, 64, (2, 6, 14, 2)),
    "l": _paper(128, 128, (2, 6, 14, 2)),
}
