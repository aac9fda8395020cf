"""Squeeze-and-excitation: channels weighted by a function of their means."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jaxtyping import Array

from vit_jax.layers.pointwise import PointwiseConv
from vit_jax.layers.shapes import Maps


class SqueezeExcitation(nn.Module):
    """Multiply each channel by a weight computed from the means of all channels: (b, h, w, d) to the same shape.

    Source: Hu et al. 2017, arXiv:1709.01507. The parameters are fc1 and fc2, 1x1 convolutions, as in torchvision.

    Args:
        squeezed: hidden width.
        activation: activation of the hidden layer.
        gate: activation of the weights.
    """

    squeezed: int
    activation: Callable[[Array], Array] = jax.nn.relu
    gate: Callable[[Array], Array] = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        means = x.mean(axis=(1, 2), keepdims=True)
        hidden = self.activation(PointwiseConv(self.squeezed, name="fc1")(means))
        return x * self.gate(PointwiseConv(x.shape[-1], name="fc2")(hidden))
