"""Projectors, which map the features of an encoder to the space in which views are compared.

Every projector takes `train`, though only the one with batch norms uses it.

Upstream: `MLP` and `NetWrapper`, which vit_pytorch/dino.py, es_vit.py and lejepa.py repeat.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.rules import Rules
from vit_jax.layers.batch_norm import BatchNorm
from vit_jax.layers.dense import Dense
from vit_jax.layers.gelu import gelu
from vit_jax.layers.norm import l2_normalize
from vit_jax.objectives.features import pooled


class Projector(nn.Module):
    """Upstream's projector: linear layers with GELU, L2 normalisation, and a last linear layer.

    Args:
        features: width of the output.
        hidden: width of the hidden layers.
        layers: number of linear layers.
    """

    features: int
    hidden: int
    layers: int

    def normalize(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Return `x` scaled to length 1."""
        return l2_normalize(x, 1e-6)

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"], *, train: bool = False) -> Float[Array, "*b k"]:
        for i in range(self.layers - 1):
            x = gelu(Dense(self.hidden, name=f"fc_{i}")(x))
        return Dense(self.features, name="last")(self.normalize(x))

    def torch_rules(self) -> Rules:
        """Rules for upstream's `MLP`, a Sequential in which the linear layers are followed by other modules."""
        hidden = ((f"fc_{i}", f"net.{2 * i}") for i in range(self.layers - 1))
        return (*hidden, ("last", f"net.{2 * self.layers - 1}"))


class RegionProjector(Projector):
    """Upstream's projector for regions (b, n, d), which normalises each feature over the n regions."""

    def normalize(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return jnp.swapaxes(super().normalize(jnp.swapaxes(x, 1, 2)), 1, 2)


class CosineProjector(nn.Module):
    """DINO's projector: the output is the cosine similarity of the projected features to learned directions.

    It has linear layers with GELU, a linear layer to the bottleneck, L2 normalisation, and a linear layer without bias
    whose weights are normalised for each output.

    Args:
        features: width of the output: number of directions.
        hidden: width of the hidden layers.
        layers: number of linear layers.
        bottleneck: width of the bottleneck.
    """

    features: int
    hidden: int
    layers: int
    bottleneck: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"], *, train: bool = False) -> Float[Array, "*b k"]:
        for i in range(self.layers - 2):
            x = gelu(Dense(self.hidden, name=f"fc_{i}")(x))
        x = l2_normalize(Dense(self.bottleneck, name="bottleneck")(x))
        directions = self.param("directions", nn.initializers.normal(0.02), (self.features, self.bottleneck))
        return x @ l2_normalize(directions).T


class BatchNormProjector(nn.Module):
    """Linear layers with batch norm and GELU, then a linear layer.

    The features of an untrained encoder are similar for all images. Batch norms remove what they have in common.

    Args:
        features: width of the output.
        hidden: width of the hidden layers.
        layers: number of linear layers.
    """

    features: int
    hidden: int
    layers: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"], *, train: bool = False) -> Float[Array, "*b k"]:
        for i in range(self.layers - 1):
            x = Dense(self.hidden, name=f"fc_{i}")(x)
            x = gelu(BatchNorm(name=f"norm_{i}")(x, train=train))
        return Dense(self.features, name="last")(x)


class Projected(nn.Module):
    """Images (b, H, W, c) to the projection (b, k) of pooled features.

    Args:
        encoder: a model that returns features.
        projector: a projector of this file.
    """

    encoder: nn.Module
    projector: nn.Module

    def __call__(self, images: Float[Array, "b *shape c"], *, train: bool = False) -> Float[Array, "b k"]:
        return self.projector(pooled(self.encoder, self.encoder(images, train=train)), train=train)
