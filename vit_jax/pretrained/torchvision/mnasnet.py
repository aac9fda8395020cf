"""MNASNet: inverted residuals with 3x3 and 5x5 kernels, found by a search that measured latency on a phone.

Source: Tan et al. 2018, arXiv:1807.11626 (its MnasNet-B1). torchvision: models/mnasnet.py.
Axes: b batch, h rows, w columns, d features, k classes.
"""

from functools import partial

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers import BatchNorm, Dense
from vit_jax.layers.check import expect
from vit_jax.layers.conv_norm import make_conv
from vit_jax.layers.shapes import Images, Maps, Output
from vit_jax.pretrained.torchvision.widths import round_width


def conv_norm(
    x: Maps, number: int, features: int, kernel: int, stride: int = 1, groups: int = 1, *, momentum: float, train: bool
) -> Float[Array, "b u v e"]:
    """Apply a convolution and a batch norm, with the indices `number` and `number + 1` in torchvision's Sequential."""
    x = make_conv(features, kernel, stride=stride, groups=groups, name=f"layers_{number}")(x)
    return BatchNorm(momentum=momentum, name=f"layers_{number + 1}")(x, train=train)


class Block(nn.Module):
    """An inverted residual: 1x1 expansion, depthwise convolution and 1x1 projection, with a shortcut if shapes fit."""

    features: int
    kernel: int
    stride: int
    expand_ratio: int
    momentum: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        conv = partial(conv_norm, momentum=self.momentum, train=train)
        hidden = x.shape[-1] * self.expand_ratio
        y = jax.nn.relu(conv(x, 0, hidden, 1))
        y = jax.nn.relu(conv(y, 3, hidden, self.kernel, self.stride, hidden))
        y = conv(y, 6, self.features, 1)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


# For each stage: features, kernel size, stride of the first block, expansion ratio, number of blocks.
STAGES = (
    (24, 3, 2, 3, 3),
    (40, 5, 2, 3, 3),
    (80, 5, 2, 6, 3),
    (96, 3, 1, 6, 2),
    (192, 5, 2, 6, 4),
    (320, 3, 1, 6, 1),
)


class MNASNet(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled features (b, 1280).

    Args:
        alpha: factor of all widths but the last, which are rounded to multiples of 8.
        num_classes: number of classes; 0 for features.
        dropout: rate before the last layer.
        norm_momentum: weight of a new batch in running statistics. The default is torchvision's; training for less than
            about ten thousand steps needs a larger one.
        channels: channels of an image.

    Raises:
        ValueError: for `alpha` of 0 or less, or a `norm_momentum` outside 0 to 1.
    """

    alpha: float
    num_classes: int = 1000
    dropout: float = 0.2
    norm_momentum: float = 1 - 0.9997
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        expect(self, "alpha", self.alpha > 0, "more than 0")
        expect(self, "norm_momentum", 0 <= self.norm_momentum <= 1, "0 to 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        conv = partial(conv_norm, momentum=self.norm_momentum, train=train)
        width = round_width(32 * self.alpha)
        x = jax.nn.relu(conv(images, 0, width, 3, 2))
        x = jax.nn.relu(conv(x, 3, width, 3, 1, width))
        x = conv(x, 6, round_width(16 * self.alpha), 1)
        for i, (features, kernel, stride, expand_ratio, layers) in enumerate(STAGES, 8):
            for j in range(layers):
                shape = (round_width(features * self.alpha), kernel, 1 if j else stride, expand_ratio)
                x = Block(*shape, self.norm_momentum, name=f"layers_{i}_{j}")(x, train=train)
        x = jax.nn.relu(conv(x, 14, 1280, 1)).mean(axis=(1, 2))
        if not self.num_classes:
            return x
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return Dense(self.num_classes, name="classifier_1")(x)

    torch_rules = ((r"layers_(\d+)_(\d+)", r"layers.\1.\2"), (r"(layers|classifier)_(\d+)", r"\1.\2"))


PRESETS = {
    "mnasnet0_5": dict(alpha=0.5),
    "mnasnet0_75": dict(alpha=0.75),
    "mnasnet1_0": dict(alpha=1.0),
    "mnasnet1_3": dict(alpha=1.3),
}
