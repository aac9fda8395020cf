"""MobileNetV3: MobileNetV2's blocks, some with squeeze-excitation or hard swish, in sizes found by architecture search.

Source: Howard et al. 2019, arXiv:1905.02244. torchvision: models/mobilenetv3.py.
Differs from the paper: as in torchvision, hidden widths of squeeze-excitation are rounded to multiples of 8; the last
convolution of the small network has no squeeze-excitation.
Axes: b batch, h rows, w columns, d features, k classes.
"""

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

ACTIVATIONS = {"RE": jax.nn.relu, "HS": jax.nn.hard_swish}
Conv = partial(ConvNorm, activation=jax.nn.hard_swish, epsilon=1e-3, momentum=0.01)


class Block(nn.Module):
    """An inverted residual: 1x1 expansion, depthwise convolution, optional squeeze-excitation, 1x1 projection."""

    kernel: int
    hidden: int
    features: int
    use_se: bool
    activation: str
    stride: int

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        conv = partial(Conv, activation=ACTIVATIONS[self.activation])
        y, number = x, int(self.hidden != x.shape[-1])  # index of the next layer in torchvision's Sequential
        if number:
            y = conv(self.hidden, 1, name="block_0")(y, train=train)
        y = conv(self.hidden, self.kernel, self.stride, groups=self.hidden, name=f"block_{number}")(y, train=train)
        if self.use_se:
            number += 1
            weigh = SqueezeExcitation(round_width(self.hidden // 4), gate=jax.nn.hard_sigmoid, name=f"block_{number}")
            y = weigh(y)
        y = Conv(self.features, 1, activation=None, name=f"block_{number + 1}")(y, train=train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV3(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the input of the last layer (b, d).

    Args:
        inverted_residual_setting: six values for each block: kernel size, hidden features, features, whether it has
            squeeze-excitation, "RE" (ReLU) or "HS" (hard swish), and stride.
        last_channel: features d before the last layer.
        num_classes: number of classes; 0 for features.
        dropout: rate before the last layer.
        channels: channels of an image.

    Raises:
        ValueError: for another form of `inverted_residual_setting`.
    """

    inverted_residual_setting: tuple[tuple[int, int, int, bool, str, int], ...]
    last_channel: int
    num_classes: int = 1000
    dropout: float = 0.2
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        at_least(self, last_channel=1)
        rows = self.inverted_residual_setting
        expected = 'six values for each block, the last but one of them "RE" or "HS", and the last, the stride, 1 or 2'
        fits = all(len(row) == 6 and row[4] in ACTIVATIONS and row[5] in (1, 2) for row in rows)
        expect(self, "inverted_residual_setting", len(rows) > 0 and fits, expected)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        x = Conv(16, 3, 2, name="features_0")(images, train=train)
        rows = self.inverted_residual_setting
        for i, row in enumerate(rows, 1):
            x = Block(*row, name=f"features_{i}")(x, train=train)
        x = Conv(6 * x.shape[-1], 1, name=f"features_{len(rows) + 1}")(x, train=train)
        x = jax.nn.hard_swish(Dense(self.last_channel, name="classifier_0")(x.mean(axis=(1, 2))))
        if not self.num_classes:
            return x
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return Dense(self.num_classes, name="classifier_3")(x)

    torch_rules = ((r"(features|block|classifier)_(\d+)", r"\1.\2"), ("conv", "0"), ("norm", "1"))


_LARGE = (
    (3, 16, 16, False, "RE", 1),
    (3, 64, 24, False, "RE", 2),
    (3, 72, 24, False, "RE", 1),
    (5, 72, 40, True, "RE", 2),
    (5, 120, 40, True, "RE", 1),
    (5, 120, 40, True, "RE", 1),
    (3, 240, 80, False, "HS", 2),
    (3, 200, 80, False, "HS", 1),
    (3, 184, 80, False, "HS", 1),
    (3, 184, 80, False, "HS", 1),
    (3, 480, 112, True, "HS", 1),
    (3, 672, 112, True, "HS", 1),
    (5, 672, 160, True, "HS", 2),
    (5, 960, 160, True, "HS", 1),
    (5, 960, 160, True, "HS", 1),
)
_SMALL = (
    (3, 16, 16, True, "RE", 2),
    (3, 72, 24, False, "RE", 2),
    (3, 88, 24, False, "RE", 1),
    (5, 96, 40, True, "HS", 2),
    (5, 240, 40, True, "HS", 1),
    (5, 240, 40, True, "HS", 1),
    (5, 120, 48, True, "HS", 1),
    (5, 144, 48, True, "HS", 1),
    (5, 288, 96, True, "HS", 2),
    (5, 576, 96, True, "HS", 1),
    (5, 576, 96, True, "HS", 1),
)
PRESETS = {
    "mobilenet_v3_large": dict(inverted_residual_setting=_LARGE, last_channel=1280),
    "mobilenet_v3_small": dict(inverted_residual_setting=_SMALL, last_channel=1024),
}
