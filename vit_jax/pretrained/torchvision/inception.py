"""Inception V3: parallel branches with different kernel sizes, where large kernels are factored into small ones.

Source: Szegedy et al. 2015, arXiv:1512.00567. torchvision: models/inception.py.
Differs from torchvision: the weights of the auxiliary head are kept, but the head is never computed; there is no
`transform_input`, since `weights.py` has the normalisation that the published weights expect.
Axes: b batch, h rows, w columns, d features, k classes.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers import BatchNorm, Dense, PointwiseConv, max_pool
from vit_jax.layers.check import check_sides
from vit_jax.layers.shapes import Images, Maps, Output

Kernel = tuple[int, int]
POINT, THREE, FIVE = (1, 1), (3, 3), (5, 5)
FORK = ((1, 3), (3, 1))


class Conv(nn.Module):
    """Convolution with a kernel (rows, columns), batch norm and ReLU. If `valid`, without padding."""

    features: int
    kernel: Kernel
    stride: int = 1
    valid: bool = False

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        if self.kernel == POINT:
            conv = PointwiseConv(self.features, use_bias=False, name="conv")
        else:
            options = dict(padding="VALID" if self.valid else "SAME", use_bias=False)
            init = nn.initializers.truncated_normal(0.1)
            conv = nn.Conv(self.features, self.kernel, self.stride, kernel_init=init, **options, name="conv")
        return jax.nn.relu(BatchNorm(epsilon=1e-3, name="bn")(conv(x), train=train))


class Mixed(nn.Module):
    """Parallel branches and a pooling branch, concatenated. With `pool_features=0` every branch halves the map.

    A branch is a sequence of convolutions (features, kernel). With two kernels, both convolutions are applied to the
    same input, and their outputs are concatenated.
    """

    branches: Mapping[str, tuple[tuple[int, Kernel] | tuple[int, Kernel, Kernel], ...]]
    pool_features: int = 0

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        outputs = []
        for name, convs in self.branches.items():
            y = x
            for i, (features, *kernels) in enumerate(convs, 1):
                halves = i == len(convs) and not self.pool_features
                step = f"{name}_{i}" if len(convs) > 1 else name
                forks = [
                    Conv(features, kernel, 2 if halves else 1, halves, name=step + suffix)(y, train=train)
                    for kernel, suffix in zip(kernels, "ab" if len(kernels) > 1 else [""], strict=True)
                ]
                y = jnp.concatenate(forks, axis=-1)
            outputs.append(y)
        if self.pool_features:
            pooled = nn.avg_pool(x, THREE, padding="SAME")
            outputs.append(Conv(self.pool_features, POINT, name="branch_pool")(pooled, train=train))
        else:
            outputs.append(max_pool(x, THREE, (2, 2)))
        return jnp.concatenate(outputs, axis=-1)


class AuxiliaryHead(nn.Module):
    """An auxiliary classifier on an intermediate map, pooled to 5x5."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b 5 5 d"]) -> Float[Array, "b k"]:
        x = Conv(768, FIVE, valid=True, name="conv1")(Conv(128, POINT, name="conv0")(x))
        return Dense(self.num_classes, name="fc")(x.mean(axis=(1, 2)))


def _wide(pool_features):
    branches = dict(
        branch1x1=((64, POINT),),
        branch5x5=((48, POINT), (64, FIVE)),
        branch3x3dbl=((64, POINT), (96, THREE), (96, THREE)),
    )
    return branches, pool_features


def _factored(width):
    row, column = (width, (1, 7)), (width, (7, 1))
    branches = dict(
        branch1x1=((192, POINT),),
        branch7x7=((width, POINT), row, (192, (7, 1))),
        branch7x7dbl=((width, POINT), column, row, column, (192, (1, 7))),
    )
    return branches, 192


def _forked():
    branches = dict(
        branch1x1=((320, POINT),),
        branch3x3=((384, POINT), (384, *FORK)),
        branch3x3dbl=((448, POINT), (384, THREE), (384, *FORK)),
    )
    return branches, 192


MIXED = {
    "5b": _wide(32),
    "5c": _wide(64),
    "5d": _wide(64),
    "6a": (dict(branch3x3=((384, THREE),), branch3x3dbl=((64, POINT), (96, THREE), (96, THREE))),),
    "6b": _factored(128),
    "6c": _factored(160),
    "6d": _factored(160),
    "6e": _factored(192),
    "7a": (
        dict(
            branch3x3=((192, POINT), (320, THREE)),
            branch7x7x3=((192, POINT), (192, (1, 7)), (192, (7, 1)), (192, THREE)),
        ),
    ),
    "7b": _forked(),
    "7c": _forked(),
}


class InceptionV3(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled features (b, d).

    With `aux_logits` there are weights for the auxiliary head, as in published files. Raises ValueError for images with
    less than 75 pixels in height or width.
    """

    num_classes: int = 1000
    aux_logits: bool = True
    dropout: float = 0.5
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        check_sides("image_size", images.shape[1:3], lambda side: side >= 75)
        x = Conv(32, THREE, 2, valid=True, name="Conv2d_1a_3x3")(images, train=train)
        x = Conv(32, THREE, valid=True, name="Conv2d_2a_3x3")(x, train=train)
        x = Conv(64, THREE, name="Conv2d_2b_3x3")(x, train=train)
        x = Conv(80, POINT, name="Conv2d_3b_1x1")(max_pool(x, THREE, (2, 2)), train=train)
        x = Conv(192, THREE, valid=True, name="Conv2d_4a_3x3")(x, train=train)
        x = max_pool(x, THREE, (2, 2))
        for name, arguments in MIXED.items():
            x = Mixed(*arguments, name=f"Mixed_{name}")(x, train=train)
        if self.is_initializing() and self.aux_logits and self.num_classes:
            AuxiliaryHead(self.num_classes, name="AuxLogits")(jnp.zeros((1, 5, 5, 768), images.dtype))
        x = nn.Dropout(self.dropout)(x.mean(axis=(1, 2)), deterministic=not train)
        return Dense(self.num_classes, name="fc")(x) if self.num_classes else x


PRESETS = {"inception_v3": {}}
