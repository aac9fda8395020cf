"""RegNet: residual blocks with grouped convolutions, whose widths are a quantised linear function of the depth.

Source: Radosavovic et al. 2020, arXiv:2003.13678. torchvision: models/regnet.py.
Axes: b batch, h rows, w columns, d features, k classes.
"""

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers import Dense, SqueezeExcitation
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.conv_norm import ConvNorm
from vit_jax.layers.shapes import Images, Maps, Output


class Block(nn.Module):
    """A residual block: 1x1 convolution, grouped 3x3 convolution, optional squeeze-excitation, 1x1 convolution."""

    width: int
    group_width: int
    stride: int
    se_ratio: float | None

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        y = ConvNorm(self.width, 1, name="a")(x, train=train)
        y = ConvNorm(self.width, 3, self.stride, self.width // self.group_width, name="b")(y, train=train)
        if self.se_ratio:
            y = SqueezeExcitation(round(self.se_ratio * x.shape[-1]), name="se")(y)
        y = ConvNorm(self.width, 1, activation=None, name="c")(y, train=train)
        if self.stride > 1 or x.shape[-1] != self.width:
            x = ConvNorm(self.width, 1, self.stride, activation=None, name="proj")(x, train=train)
        return jax.nn.relu(x + y)


class RegNet(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled features (b, d).

    The width of block i is `w_0 + i * w_a`, rounded to `w_0` times a power of `w_m`, then to multiples of 8 and of
    `group_width`. Blocks of the same width form a stage.

    Args:
        depth: number of blocks.
        w_0: width of the first block.
        w_a: increase of the width from block to block, before rounding.
        w_m: factor of the width from stage to stage.
        group_width: features of a group of the grouped convolutions.
        se_ratio: hidden width of squeeze-excitation by that of the block's input; None for no squeeze-excitation.
        stem_width: features of the stem.
        num_classes: number of classes; 0 for features.
        channels: channels of an image.

    Raises:
        ValueError: for `w_0` that is not a multiple of 8, or `w_m` of 1 or less.
    """

    depth: int
    w_0: int
    w_a: float
    w_m: float
    group_width: int
    se_ratio: float | None = None
    stem_width: int = 32
    num_classes: int = 1000
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        at_least(self, depth=1, w_0=8, w_a=0, group_width=1, se_ratio=0, stem_width=1)
        expect(self, "w_0", self.w_0 % 8 == 0, "a multiple of 8")
        expect(self, "w_m", self.w_m > 1, "more than 1")
        super().__post_init__()

    def stages(self) -> list[tuple[int, int, int]]:
        """The number of blocks, the width, and the width of a group for each stage."""
        line = 1 + np.arange(self.depth) * self.w_a / self.w_0
        power = np.round(np.log(line) / np.log(self.w_m))
        widths, depths = np.unique(8 * np.round(self.w_0 * self.w_m**power / 8).astype(int), return_counts=True)
        groups = [min(self.group_width, width) for width in widths.tolist()]
        return [
            (d, nearest_multiple(w, g), g) for d, w, g in zip(depths.tolist(), widths.tolist(), groups, strict=True)
        ]

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        x = ConvNorm(self.stem_width, 3, stride=2, name="stem")(images, train=train)
        for i, (depth, width, group_width) in enumerate(self.stages(), 1):
            for j in range(depth):
                block = Block(width, group_width, 1 if j else 2, self.se_ratio, name=f"block{i}_{j}")
                x = block(x, train=train)
        x = x.mean(axis=(1, 2))
        return Dense(self.num_classes, name="fc")(x) if self.num_classes else x

    torch_rules = (
        (r"block(\d)_(\d+)/proj", r"trunk_output.block\1.block\1-\2.proj"),
        (r"block(\d)_(\d+)", r"trunk_output.block\1.block\1-\2.f"),
        ("conv", "0"),
        ("norm", "1"),
    )


def nearest_multiple(width: int, divisor: int) -> int:
    """Return the multiple of `divisor` nearest to `width`, or the next one if it is more than a tenth below `width`."""
    multiple = max(1, (2 * width + divisor) // (2 * divisor)) * divisor
    return multiple if multiple >= 0.9 * width else multiple + divisor


def _x(depth, w_0, w_a, w_m, group_width):
    return dict(depth=depth, w_0=w_0, w_a=w_a, w_m=w_m, group_width=group_width)


def _y(*sizes):
    return dict(_x(*sizes), se_ratio=0.25)


PRESETS = {
    "regnet_y_400mf": _y(16, 48, 27.89, 2.09, 8),
    "regnet_y_800mf": _y(14, 56, 38.84, 2.4, 16),
    "regnet_y_1_6gf": _y(27, 48, 20.71, 2.65, 24),
    "regnet_y_3_2gf": _y(21, 80, 42.63, 2.66, 24),
    "regnet_y_8gf": _y(17, 192, 76.82, 2.19, 56),
    "regnet_y_16gf": _y(18, 200, 106.23, 2.48, 112),
    "regnet_y_32gf": _y(20, 232, 115.89, 2.53, 232),
    "regnet_y_128gf": _y(27, 456, 160.83, 2.52, 264),
    "regnet_x_400mf": _x(22, 24, 24.48, 2.54, 16),
    "regnet_x_800mf": _x(16, 56, 35.73, 2.28, 16),
    "regnet_x_1_6gf": _x(18, 80, 34.01, 2.25, 24),
    "regnet_x_3_2gf": _x(25, 88, 26.31, 2.25, 48),
    "regnet_x_8gf": _x(23, 80, 49.56, 2.88, 120),
    "regnet_x_16gf": _x(22, 216, 55.59, 2.1, 128),
    "regnet_x_32gf": _x(23, 320, 69.86, 2.0, 168),
}
