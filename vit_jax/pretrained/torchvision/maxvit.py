"""MaxViT: every layer has a convolution block, attention within windows, and attention over a dilated grid.

Source: Tu et al. 2022, arXiv:2204.01697. torchvision: models/maxvit.py.
Differs from torchvision: images may be non-square, and of several sizes.
Differs from the paper: as in torchvision, the scale of the scores is that of the map's width (paper: of a head's).
Axes: b batch, h rows, w columns, d features, m windows, n pixels of a window, i query, j key, k classes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import sequential_rules
from vit_jax.frames.stages import check_windows
from vit_jax.layers import (
    BatchNorm,
    Dense,
    FeedForward,
    LayerNorm,
    PointwiseConv,
    SqueezeExcitation,
    ToHeads,
    attend,
    gelu,
    relative_positions,
)
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.conv_norm import ConvNorm, make_conv
from vit_jax.layers.shapes import Images, Maps, Output

NORM = dict(epsilon=1e-3, momentum=0.01)
conv_norm = functools.partial(ConvNorm, activation=gelu, **NORM)
Windows = Float[Array, "b m n d"]


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze-excitation, after a norm. At stride 2 the shortcut is pooled."""

    features: int
    stride: int
    stochastic_depth_prob: float
    expansion_ratio: int | float
    squeeze_ratio: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        wide = int(self.features * self.expansion_ratio)
        y = BatchNorm(**NORM, name="pre_norm")(x, train=train)
        y = conv_norm(wide, 1, name="conv_a")(y, train=train)
        y = conv_norm(wide, 3, self.stride, wide, name="conv_b")(y, train=train)
        y = SqueezeExcitation(int(self.features * self.squeeze_ratio), jax.nn.silu, name="squeeze_excitation")(y)
        y = PointwiseConv(self.features, name="conv_c")(y)
        if self.stride == 2:
            x = nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
            x = PointwiseConv(self.features, name="proj")(x)
        return x + nn.Dropout(self.stochastic_depth_prob, broadcast_dims=(1, 2, 3))(y, deterministic=not train)


class Attention(nn.Module):
    """Attention within windows after a norm, with a learned bias for each offset between pixels."""

    head_dim: int
    partition_size: int

    @nn.compact
    def __call__(self, x: Windows) -> Windows:
        dim, heads = x.shape[-1], x.shape[-1] // self.head_dim
        q, k, v = ToHeads(3, heads, self.head_dim, use_bias=True, name="to_qkv")(LayerNorm(name="norm")(x))
        shape = ((2 * self.partition_size - 1) ** 2, heads)
        biases = self.param("relative_position_bias_table", nn.initializers.truncated_normal(0.02), shape)
        bias = rearrange(biases[relative_positions(self.partition_size)], "i j h -> 1 1 h i j")
        return Dense(dim, name="merge")(attend(self, q, k, v, scale=dim**-0.5, bias=bias))


# Windows consist of neighbouring pixels, or of pixels that are evenly spread over the whole map (grid attention).
LAYOUTS = {"window_attention": "b (h w1) (w w2) d", "grid_attention": "b (w1 h) (w2 w) d"}


class Partition(nn.Module):
    """Attention and feed-forward within windows, with residuals. `layout` is the einops pattern of windows."""

    partition_size: int
    head_dim: int
    mlp_ratio: int
    dropouts: tuple[float, float]
    layout: str
    stochastic_depth_prob: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        rows, dim = x.shape[1] // self.partition_size, x.shape[-1]
        attention_dropout, mlp_dropout = self.dropouts
        attention = Attention(self.head_dim, self.partition_size, name="attn")
        feed_forward = FeedForward(self.mlp_ratio * dim, name="ff")
        x = rearrange(x, f"{self.layout} -> b (h w) (w1 w2) d", w1=self.partition_size, w2=self.partition_size)
        for part, dropout in ((attention, attention_dropout), (feed_forward, mlp_dropout)):
            y = nn.Dropout(dropout)(part(x), deterministic=not train)
            x = x + nn.Dropout(self.stochastic_depth_prob, broadcast_dims=(1, 2, 3))(y, deterministic=not train)
        return rearrange(x, f"b (h w) (w1 w2) d -> {self.layout}", h=rows, w1=self.partition_size)


class MaxVit(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the input of the last layer (b, d).

    Args:
        stem_channels: features of the stem.
        block_channels: features of each stage.
        block_layers: number of layers of each stage.
        head_dim: width of a head, which divides every width in `block_channels`.
        partition_size: height and width of a window in pixels. Windows must tile the map of every stage.
        stochastic_depth_prob: probability that a branch of the last layer is skipped in training; it rises linearly
            from 0 at the first layer.
        input_size: pixels, or (height, width): if given, it is checked at construction that windows fit.
        squeeze_ratio: width of squeeze-excitation by that of the stage.
        expansion_ratio: hidden width of the convolution block by that of the stage.
        mlp_ratio: hidden width of the feed-forward by that of the stage.
        mlp_dropout: rate after each feed-forward.
        attention_dropout: rate after each attention.
        num_classes: number of classes; 0 for features.
        channels: channels of an image.

    Raises:
        ValueError: if windows do not tile a map, heads do not divide the features, or for a rate outside 0 to 1.
    """

    stem_channels: int
    block_channels: tuple[int, ...]
    block_layers: tuple[int, ...]
    head_dim: int
    partition_size: int
    stochastic_depth_prob: float
    input_size: int | tuple[int, int] | None = None
    squeeze_ratio: float = 0.25
    expansion_ratio: int | float = 4
    mlp_ratio: int = 4
    mlp_dropout: float = 0.0
    attention_dropout: float = 0.0
    num_classes: int = 1000
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        sizes = ("stem_channels", "block_channels", "block_layers", "head_dim", "partition_size", "mlp_ratio")
        at_least(self, **dict.fromkeys(sizes, 1))
        stages = len(self.block_channels)
        of_each = f"one number for each of block_channels={self.block_channels}"
        expect(self, "block_layers", len(self.block_layers) == stages, of_each)
        fits = all(features % self.head_dim == 0 for features in self.block_channels)
        expect(self, "block_channels", fits, f"multiples of head_dim={self.head_dim}")
        for name in ("stochastic_depth_prob", "mlp_dropout"):
            expect(self, name, 0 <= getattr(self, name) <= 1, "0 to 1")
        if self.input_size is not None:
            check_windows(self.input_size, (self.partition_size,) * stages, name="input_size")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        check_windows(images.shape[1:3], (self.partition_size,) * len(self.block_channels))
        x = conv_norm(self.stem_channels, 3, stride=2, name="stem_0")(images, train=train)
        x = make_conv(self.stem_channels, 3, use_bias=True, name="stem_1_0")(x)
        probs = iter(np.linspace(0, self.stochastic_depth_prob, sum(self.block_layers)).tolist())
        dropouts = (self.attention_dropout, self.mlp_dropout)
        mbconv = functools.partial(MBConv, expansion_ratio=self.expansion_ratio, squeeze_ratio=self.squeeze_ratio)
        partition = functools.partial(Partition, self.partition_size, self.head_dim, self.mlp_ratio, dropouts)
        for i, (features, depth) in enumerate(zip(self.block_channels, self.block_layers, strict=True)):
            for j in range(depth):
                block, prob = f"blocks_{i}_{j}", next(probs)
                x = mbconv(features, 1 if j else 2, prob, name=f"{block}_MBconv")(x, train=train)
                for name, layout in LAYOUTS.items():
                    x = partition(layout, prob, name=f"{block}_{name}")(x, train=train)
        x = LayerNorm(name="classifier_2")(x.mean(axis=(1, 2)))
        x = jnp.tanh(Dense(x.shape[-1], name="classifier_3")(x))
        return Dense(self.num_classes, use_bias=False, name="classifier_5")(x) if self.num_classes else x

    torch_rules = (
        (r"blocks_(\d)_(\d+)_MBconv/proj", r"blocks.\1.layers.\2.layers.MBconv.proj.1"),
        (r"blocks_(\d)_(\d+)_MBconv", r"blocks.\1.layers.\2.layers.MBconv.layers"),
        (r"blocks_(\d)_(\d+)_(\w+)", r"blocks.\1.layers.\2.layers.\3"),
        ("attn/norm", "attn_layer.0"),
        ("attn", "attn_layer.1"),
        *sequential_rules("ff", "mlp_layer", norm=0, fc1=1, fc2=3),
        ("stem_1_0", "stem.1.0"),
        (r"(stem|classifier)_(\d)", r"\1.\2"),
        ("conv", "0"),
        ("norm", "1"),
    )

    def torch_constants(self) -> dict[str, np.ndarray]:
        """The table that torchvision stores in every attention."""
        table = relative_positions(self.partition_size)
        return {
            f"blocks.{i}.layers.{j}.layers.{name}.attn_layer.1.relative_position_index": table
            for i, depth in enumerate(self.block_layers)
            for j in range(depth)
            for name in LAYOUTS
        }


PRESETS = {
    "maxvit_t": dict(
        stem_channels=64,
        block_channels=(64, 128, 256, 512),
        block_layers=(2, 2, 5, 2),
        head_dim=32,
        partition_size=7,
        stochastic_depth_prob=0.2,
    )
}
