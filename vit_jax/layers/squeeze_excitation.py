"""Channels weighted by what the whole map holds."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jaxtyping import Array

from vit_jax.layers.pointwise import PointwiseConv
from vit_jax.layers.shapes import Maps


class SqueezeExcitation(nn.Module):
    """Weighs each channel by a `gate` of all channels' means, squeezed to `squeezed` in between: (b, h, w, d) to same.

    Source: Hu et al. 2017, arXiv:1709.01507. Parameters are those of torchvision's: fc1 and fc2, as 1x1 convolutions.
    """

    squeezed: int
    activation: Callable[[Array], Array] = jax.nn.relu
    gate: Callable[[Array], Array] = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        means = x.mean(axis=(1, 2), keepdims=True)
        hidden = self.activation(PointwiseConv(self.squeezed, name="fc1")(means))
        return x * self.gate(PointwiseConv(x.shape[-1], name="fc2")(hidden))
