"""Convolution, batch norm and activation, the common unit of convolutional networks."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.batch_norm import BatchNorm
from vit_jax.layers.depthwise import DepthwiseConv
from vit_jax.layers.pointwise import PointwiseConv
from vit_jax.layers.shapes import Maps


def make_conv(
    features: int, kernel: int, *, stride: int = 1, groups: int = 1, use_bias: bool = False, name: str
) -> nn.Module:
    """Return the fastest module for a convolution with an odd `kernel`, zero-padded by half of it on each side.

    With `groups` equal to `features` it is a `DepthwiseConv`.
    """
    if kernel == stride == groups == 1:
        return PointwiseConv(features, use_bias, name=name)
    if 1 < groups == features:
        return DepthwiseConv(kernel, stride, use_bias=use_bias, name=name)
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=kernel // 2,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        name=name,
    )


class ConvNorm(nn.Module):
    """(b, h, w, c) to (b, h / stride, w / stride, features): convolution without bias, batch norm, `activation`."""

    features: int
    kernel: int
    stride: int = 1
    groups: int = 1
    activation: Callable[[Array], Array] | None = jax.nn.relu
    epsilon: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        x = make_conv(self.features, self.kernel, stride=self.stride, groups=self.groups, name="conv")(x)
        x = BatchNorm(self.epsilon, momentum=self.momentum, name="norm")(x, train=train)
        return x if self.activation is None else self.activation(x)
