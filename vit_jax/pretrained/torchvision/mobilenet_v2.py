"""MobileNetV2: inverted residuals with linear bottlenecks, whose shortcuts connect the bottlenecks.

Source: Sandler et al. 2018, arXiv:1801.04381. torchvision: models/mobilenetv2.py.
Axes: b batch, h rows, w columns, d features, k classes.
"""

from functools import partial

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers import BatchNorm, Dense, PointwiseConv
from vit_jax.layers.check import expect
from vit_jax.layers.conv_norm import ConvNorm
from vit_jax.layers.shapes import Images, Maps, Output
from vit_jax.pretrained.torchvision.widths import round_width

ConvNorm6 = partial(ConvNorm, activation=jax.nn.relu6)


class Block(nn.Module):
    """An inverted residual: 1x1 expansion, depthwise convolution and 1x1 projection, with a shortcut if shapes fit."""

    features: int
    stride: int
    expand_ratio: int

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        hidden = x.shape[-1] * self.expand_ratio
        y, number = x, int(hidden != x.shape[-1])  # index of the next layer in torchvision's Sequential
        if number:
            y = ConvNorm6(hidden, 1, name="conv_0")(y, train=train)
        y = ConvNorm6(hidden, 3, self.stride, groups=hidden, name=f"conv_{number}")(y, train=train)
        y = PointwiseConv(self.features, use_bias=False, name=f"conv_{number + 1}")(y)
        y = BatchNorm(name=f"conv_{number + 2}")(y, train=train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


# For each stage: expansion ratio, features, number of blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled features (b, d).

    Widths are multiplied by `width_mult` and rounded to multiples of 8; the last one is at least 1280. Raises
    ValueError for a `width_mult` of 0 or less.
    """

    num_classes: int = 1000
    width_mult: float = 1.0
    dropout: float = 0.2
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        expect(self, "width_mult", self.width_mult > 0, "more than 0")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        x = ConvNorm6(round_width(32 * self.width_mult), 3, 2, name="features_0")(images, train=train)
        number = 1
        for expand_ratio, features, layers, stride in STAGES:
            for i in range(layers):
                shape = (round_width(features * self.width_mult), 1 if i else stride, expand_ratio)
                x = Block(*shape, name=f"features_{number}")(x, train=train)
                number += 1
        x = ConvNorm6(round_width(1280 * max(1.0, self.width_mult)), 1, name=f"features_{number}")(x, train=train)
        x = x.mean(axis=(1, 2))
        if not self.num_classes:
            return x
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return Dense(self.num_classes, name="classifier_1")(x)

    torch_rules = ((r"(features|conv|classifier)_(\d+)", r"\1.\2"), ("conv", "0"), ("norm", "1"))


PRESETS = {"mobilenet_v2": {}}
