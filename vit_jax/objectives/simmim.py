"""SimMIM: masked patches are replaced by a mask token, and a linear layer after the encoder predicts their pixels.

Source: Xie et al. 2021, arXiv:2111.09886. Upstream: `SimMIM` in vit_pytorch/simmim.py.
Differs from upstream: it runs (upstream misreads the shape of positions, and crashes with its ViT and SimpleViT); a
class token goes through the encoder (`class_token=False` leaves it out, as upstream intends); the mask token starts at
a standard deviation of 0.02 (upstream: 1).
Differs from the paper: single patches are masked, half of them by default; the loss is divided by the number of masked
patches a second time, as upstream.
Axes: b batch, n patches, m masked patches, d dim, p values of a patch.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.layers import Dense
from vit_jax.layers.shapes import Images
from vit_jax.objectives.masked import (
    PATCH_ALIASES,
    check_encoder,
    check_share,
    draw_masked,
    embed,
    encode,
    fill,
    mask,
    take,
    to_patches,
    transform,
)
from vit_jax.objectives.pretrain import Pretraining


class MaskedImageModel(nn.Module):
    """An encoder and a linear layer: images (b, H, W, c) and the indices of masked patches to losses (b,).

    The fields are those of `SimMIM`.
    """

    encoder: nn.Module
    class_token: bool = True

    @nn.compact
    def reconstruct(self, images: Images, masked: Int[Array, "b m"], *, train: bool = False) -> Float[Array, "b m p"]:
        """Predict the values of the masked patches from the others."""
        fill(self, images)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.encoder.dim,))
        patches = mask(self.encoder.to_patch_embedding(images), masked, mask_token)
        if self.class_token:
            tokens = encode(self.encoder, images, patches=patches, train=train)
        else:
            tokens = transform(self.encoder, embed(self.encoder, images, patches=patches)[1], train=train)
        return Dense(to_patches(images, self.encoder).shape[-1], name="to_pixels")(take(tokens, masked))

    def __call__(self, images: Images, masked: Int[Array, "b m"], *, train: bool = False) -> Float[Array, "b"]:
        targets = take(to_patches(images, self.encoder), masked).astype(jnp.float32)
        predicted = self.reconstruct(images, masked, train=train).astype(jnp.float32)
        return jnp.abs(predicted - targets).mean(axis=(1, 2)) / masked.shape[1]

    torch_aliases = PATCH_ALIASES


@dataclasses.dataclass(frozen=True)
class SimMIM(Pretraining):
    """Mean absolute error of the predicted pixels of masked patches, divided by the number of masked patches.

    Args:
        encoder: a model of patches whose tokens see one patch each before the transformer.
        masking_ratio: share of the patches to mask, rounded down to whole patches.
        class_token: keep tokens before the patches, such as a class token, so that they are pretrained too. Otherwise
            the encoder must take any number of patches and treat all tokens alike.

    Raises:
        ValueError: for an unsuitable encoder or invalid values.
    """

    masking_ratio: float = 0.5
    class_token: bool = True

    def __post_init__(self):
        methods = ("encode",) if self.class_token else ("embed", "encode")
        check_encoder(self.encoder, methods=methods, movable=not self.class_token)
        check_share("masking_ratio", self.masking_ratio)

    @property
    def model(self) -> MaskedImageModel:
        return MaskedImageModel(self.encoder, self.class_token)

    def draw(self, key: Array, images: Array) -> dict[str, Array]:
        masked, _ = draw_masked(key, self.encoder, images, self.masking_ratio)
        return {"masked": masked}
