"""ResNet, ResNeXt (grouped convolutions) and Wide ResNet: convolution blocks with residual connections.

Source: He et al. 2015, arXiv:1512.03385; ResNeXt: Xie et al. 2016, arXiv:1611.05431; Wide ResNet: Zagoruyko and
Komodakis 2016, arXiv:1605.07146. torchvision: models/resnet.py.
Differs from the paper: as in torchvision, the stride of a bottleneck is at its 3x3 convolution (paper: at its first).
Axes: b batch, h rows, w columns, d features, k classes.
"""

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers import BatchNorm, Dense, max_pool
from vit_jax.layers.check import at_least, one_of
from vit_jax.layers.conv_norm import make_conv
from vit_jax.layers.shapes import Images, Maps, Output


class Block(nn.Module):
    """A residual block. Each of `convs` is (features, kernel, stride, groups)."""

    convs: tuple[tuple[int, int, int, int], ...]
    downsample: bool

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        y = x
        for i, (features, kernel, stride, groups) in enumerate(self.convs, 1):
            y = jax.nn.relu(y) if i > 1 else y
            y = make_conv(features, kernel, stride=stride, groups=groups, name=f"conv{i}")(y)
            y = BatchNorm(name=f"bn{i}")(y, train=train)
        if self.downsample:
            stride = max(stride for _, _, stride, _ in self.convs)
            x = make_conv(self.convs[-1][0], 1, stride=stride, name="downsample_0")(x)
            x = BatchNorm(name="downsample_1")(x, train=train)
        return jax.nn.relu(x + y)


class ResNet(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled features (b, d).

    Args:
        block: "basic" (two convolutions) or "bottleneck" (three).
        layers: number of blocks of each stage.
        num_classes: number of classes; 0 for features.
        groups: groups of the 3x3 convolution of a bottleneck.
        width_per_group: features of such a group in the first stage.
        channels: channels of an image.

    Raises:
        ValueError: for another `block`.
    """

    block: str
    layers: tuple[int, ...]
    num_classes: int = 1000
    groups: int = 1
    width_per_group: int = 64
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        one_of("block", self.block, ("basic", "bottleneck"))
        at_least(self, layers=1, groups=1, width_per_group=1)
        super().__post_init__()

    def _convs(self, features: int, stride: int) -> tuple[tuple[int, int, int, int], ...]:
        if self.block == "basic":
            return (features, 3, stride, 1), (features, 3, 1, 1)
        width = int(features * self.width_per_group / 64) * self.groups
        return (width, 1, 1, 1), (width, 3, stride, self.groups), (4 * features, 1, 1, 1)

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        x = make_conv(64, 7, stride=2, name="conv1")(images)
        x = jax.nn.relu(BatchNorm(name="bn1")(x, train=train))
        x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, depth in enumerate(self.layers):
            for j in range(depth):
                convs = self._convs(64 * 2**i, 2 if i and not j else 1)
                downsample = j == 0 and (i > 0 or convs[-1][0] != x.shape[-1])
                x = Block(convs, downsample, name=f"layer{i + 1}_{j}")(x, train=train)
        x = x.mean(axis=(1, 2))
        return Dense(self.num_classes, name="fc")(x) if self.num_classes else x

    torch_rules = ((r"layer(\d)_(\d+)", r"layer\1.\2"), (r"downsample_(\d)", r"downsample.\1"))


def _bottleneck(*layers, **groups):
    return dict(block="bottleneck", layers=layers, **groups)


PRESETS = {
    "resnet18": dict(block="basic", layers=(2, 2, 2, 2)),
    "resnet34": dict(block="basic", layers=(3, 4, 6, 3)),
    "resnet50": _bottleneck(3, 4, 6, 3),
    "resnet101": _bottleneck(3, 4, 23, 3),
    "resnet152": _bottleneck(3, 8, 36, 3),
    "resnext50_32x4d": _bottleneck(3, 4, 6, 3, groups=32, width_per_group=4),
    "resnext101_32x8d": _bottleneck(3, 4, 23, 3, groups=32, width_per_group=8),
    "resnext101_64x4d": _bottleneck(3, 4, 23, 3, groups=64, width_per_group=4),
    "wide_resnet50_2": _bottleneck(3, 4, 6, 3, width_per_group=128),
    "wide_resnet101_2": _bottleneck(3, 4, 23, 3, width_per_group=128),
}
