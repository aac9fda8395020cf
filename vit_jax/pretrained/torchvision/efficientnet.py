"""EfficientNet and EfficientNetV2: inverted residuals with squeeze-excitation, in sizes found by architecture search.

Source: Tan and Le 2019, arXiv:1905.11946; V2: Tan and Le 2021, arXiv:2104.00298. torchvision: models/efficientnet.py.
Differs from the paper: as in torchvision, padding is symmetric (TensorFlow: more at the bottom and right).
Axes: b batch, h rows, w columns, d features, k classes.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers import Dense, SqueezeExcitation
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.conv_norm import ConvNorm
from vit_jax.layers.shapes import Images, Maps, Output
from vit_jax.pretrained.torchvision.widths import round_width


class Block(nn.Module):
    """An inverted residual: 1x1 expansion, depthwise convolution, squeeze-excitation and 1x1 projection.

    If `fused`, one full convolution replaces expansion and depthwise convolution, and there is no squeeze-excitation.
    `conv` creates a convolution with norm and activation.
    """

    conv: Callable[..., nn.Module]
    features: int
    kernel: int
    stride: int
    expand_ratio: int
    fused: bool
    drop: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        width, window = x.shape[-1], (self.kernel, self.stride)
        hidden = round_width(width * self.expand_ratio)
        y, number = x, int(hidden != width)  # index of the next layer in torchvision's Sequential
        if self.fused:
            y = self.conv(hidden if number else self.features, *window, name="block_0")(y, train=train)
        else:
            if number:
                y = self.conv(hidden, 1, name="block_0")(y, train=train)
            y = self.conv(hidden, *window, groups=hidden, name=f"block_{number}")(y, train=train)
            y = SqueezeExcitation(max(1, width // 4), jax.nn.silu, name=f"block_{number + 1}")(y)
            number += 2
        if number:
            y = self.conv(self.features, 1, activation=None, name=f"block_{number}")(y, train=train)
        if self.stride > 1 or width != self.features:
            return y
        # Stochastic depth: one draw for the whole branch of a sample.
        return x + nn.Dropout(self.drop, broadcast_dims=(1, 2, 3))(y, deterministic=not train)


class EfficientNet(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled features (b, d).

    Args:
        inverted_residual_setting: five numbers for each stage: expansion ratio, kernel size, stride of the first block,
            features, and number of blocks.
        stem_channel: features of the stem.
        fused_stages: number of stages, from the first, whose blocks are fused.
        last_channel: features of the last map; None for four times those of the last stage.
        num_classes: number of classes; 0 for features.
        dropout: rate before the last layer.
        stochastic_depth_prob: limit of the probability that a block is skipped in training, which rises linearly from 0
            at the first block.
        norm_epsilon: epsilon of batch norms.
        norm_momentum: weight of a new batch in running statistics.
        channels: channels of an image.

    Raises:
        ValueError: for another form of `inverted_residual_setting`, or a probability outside 0 to 1.
    """

    inverted_residual_setting: tuple[tuple[int, ...], ...]
    stem_channel: int
    fused_stages: int = 0
    last_channel: int | None = None
    num_classes: int = 1000
    dropout: float = 0.2
    stochastic_depth_prob: float = 0.2
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.1
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        at_least(self, stem_channel=1, fused_stages=0, last_channel=1)
        rows = self.inverted_residual_setting
        expected = "five numbers, 1 or more, for each stage, the third of which, the stride, is 1 or 2"
        fits = all(len(row) == 5 and min(row) > 0 and row[2] < 3 for row in rows)
        expect(self, "inverted_residual_setting", len(rows) > 0 and fits, expected)
        expect(self, "stochastic_depth_prob", 0 <= self.stochastic_depth_prob <= 1, "0 to 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        conv = partial(ConvNorm, activation=jax.nn.silu, epsilon=self.norm_epsilon, momentum=self.norm_momentum)
        x = conv(self.stem_channel, 3, 2, name="features_0")(images, train=train)
        rows = self.inverted_residual_setting
        drop, blocks = 0.0, sum(row[-1] for row in rows)
        for i, (expand_ratio, kernel, stride, features, layers) in enumerate(rows):
            for j in range(layers):
                window = (kernel, 1 if j else stride)
                shape, name = (features, *window, expand_ratio, i < self.fused_stages), f"features_{i + 1}_{j}"
                x = Block(conv, *shape, drop, name=name)(x, train=train)
                drop += self.stochastic_depth_prob / blocks
        last_channel = self.last_channel or 4 * x.shape[-1]
        x = conv(last_channel, 1, name=f"features_{len(rows) + 1}")(x, train=train).mean(axis=(1, 2))
        if not self.num_classes:
            return x
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return Dense(self.num_classes, name="classifier_1")(x)

    torch_rules = (
        (r"features_(\d+)_(\d+)", r"features.\1.\2"),
        (r"(features|block|classifier)_(\d+)", r"\1.\2"),
        ("conv", "0"),
        ("norm", "1"),
    )


def _v1(width_mult: float, depth_mult: float, dropout: float, **norm: float) -> dict:
    windows = ((1, 3, 1), (6, 3, 2), (6, 5, 2), (6, 3, 2), (6, 5, 1), (6, 5, 2), (6, 3, 1))
    sizes = ((16, 1), (24, 2), (40, 2), (80, 3), (112, 3), (192, 4), (320, 1))
    scaled = [(round_width(features * width_mult), math.ceil(layers * depth_mult)) for features, layers in sizes]
    return dict(
        inverted_residual_setting=tuple((*window, *size) for window, size in zip(windows, scaled, strict=True)),
        stem_channel=round_width(32 * width_mult),
        dropout=dropout,
        **norm,
    )


def _v2(dropout: float, *stages: tuple[int, int]) -> dict:
    """V2 with (features, number of blocks) of each stage. The stem is as wide as the first stage."""
    windows = ((1, 3, 1), (4, 3, 2), (4, 3, 2), (4, 3, 2), (6, 3, 1), (6, 3, 2), (6, 3, 1))
    return dict(
        inverted_residual_setting=tuple((*w, *stage) for w, stage in zip(windows, stages, strict=False)),
        stem_channel=stages[0][0],
        fused_stages=3,
        last_channel=1280,
        dropout=dropout,
        norm_epsilon=1e-3,
    )


PRESETS = {
    "efficientnet_b0": _v1(1.0, 1.0, 0.2),
    "efficientnet_b1": _v1(1.0, 1.1, 0.2),
    "efficientnet_b2": _v1(1.1, 1.2, 0.3),
    "efficientnet_b3": _v1(1.2, 1.4, 0.3),
    "efficientnet_b4": _v1(1.4, 1.8, 0.4),
    "efficientnet_b5": _v1(1.6, 2.2, 0.4, norm_epsilon=1e-3, norm_momentum=0.01),
    "efficientnet_b6": _v1(1.8, 2.6, 0.5, norm_epsilon=1e-3, norm_momentum=0.01),
    "efficientnet_b7": _v1(2.0, 3.1, 0.5, norm_epsilon=1e-3, norm_momentum=0.01),
    "efficientnet_v2_s": _v2(0.2, (24, 2), (48, 4), (64, 4), (128, 6), (160, 9), (256, 15)),
    "efficientnet_v2_m": _v2(0.3, (24, 3), (48, 5), (80, 5), (160, 7), (176, 14), (304, 18), (512, 5)),
    "efficientnet_v2_l": _v2(0.4, (32, 4), (64, 7), (96, 7), (192, 10), (224, 19), (384, 25), (640, 7)),
}
