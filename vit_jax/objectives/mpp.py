"""Masked patch prediction: predict the mean colour of patches that were masked or replaced by another patch.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929, self-supervision. Upstream: `MPP` in vit_pytorch/mpp.py.
Differs from upstream: it runs (upstream misreads the shapes of its ViT's class token and positions, and crashes); the
encoder may have no class token; the number of bins is exact (upstream: rounding can add one); shares that sum to more
than 1 raise an error.
Differs from the paper: patches are masked before they are embedded; by default 15 percent of them (paper: 50), half
with the mask token and half with another patch (paper: 80 and 10 percent, and 10 unchanged).
Axes: b batch, n patches, m masked patches, d dim, c channels, p values of a patch, k classes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vit_jax.layers import Dense
from vit_jax.layers.check import at_least
from vit_jax.layers.shapes import Images
from vit_jax.objectives.masked import (
    check_encoder,
    check_share,
    count_patches,
    encode,
    fill,
    shuffled,
    take,
    to_images,
    to_patches,
)
from vit_jax.objectives.pretrain import Pretraining


def mean_colours(
    patches: Float[Array, "b m p"],
    channels: int,
    bits: int,
    max_pixel_val: float,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Int[Array, "b m"]:
    """Return the class of each patch: the combined bin indices of the means of its channels.

    Bin i of `2**bits` bins contains means above `i * width` and up to `(i + 1) * width`, where `width` is
    `max_pixel_val / 2**bits`. The first channel is the least significant digit of the class.

    Args:
        patches: normalised patches, channels last.
        channels: number of channels.
        bits: bits of a bin index.
        max_pixel_val: largest pixel before normalisation.
        mean: mean of each channel with which images are normalised, or None if they are not.
        std: standard deviation of each channel with which images are normalised, or None.

    Raises:
        ValueError: unless `mean` and `std` have a number for each channel.
    """
    pixels = rearrange(patches.astype(jnp.float32), "b m (pixel c) -> b m pixel c", c=channels)
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise ValueError(f"{name}={values!r}: expected {channels} numbers, one for each channel")
    per_channel = lambda values: jnp.asarray(values, jnp.float32).reshape(1, 1, 1, channels)
    if mean is not None and std is not None:
        pixels = pixels * per_channel(std) + per_channel(mean)
    colours = jnp.minimum(pixels, max_pixel_val).mean(axis=2)
    ends = max_pixel_val / 2**bits * np.arange(1, 2**bits, dtype=np.float32)
    bins = (colours[..., None] > ends.reshape(1, 1, 1, -1)).sum(axis=-1)
    return (bins * 2 ** (bits * np.arange(channels)).reshape(1, 1, channels)).sum(axis=-1)


class MaskedPatchPrediction(nn.Module):
    """An encoder and a linear classifier: images (b, H, W, c) and the choice of masked patches to losses (b,).

    The fields are those of `MPP`.
    """

    encoder: nn.Module
    output_channel_bits: int = 3
    max_pixel_val: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @nn.compact
    def classify(
        self,
        images: Images,
        masked: Int[Array, "b m"],
        replaced: Bool[Array, "b m"],
        exchanged: Bool[Array, "b m"],
        others: Int[Array, "b m"],
        *,
        train: bool = False,
    ) -> Float[Array, "b m k"]:
        """Return the logits of the masked patches.

        Args:
            images: the images.
            masked: indices of the masked patches.
            replaced: which of them are replaced by the mask token.
            exchanged: which of the others are replaced by another patch of the image; the rest is unchanged.
            others: index of that patch.
            train: apply dropout.
        """
        fill(self, images)
        patches = to_patches(images, self.encoder)
        mask_token = self.param("mask_token", nn.initializers.normal(1.0), (1, 1, patches.shape[-1]))
        shown = jnp.where(exchanged[:, :, None], take(patches, others), take(patches, masked))
        shown = jnp.where(replaced[:, :, None], mask_token.astype(images.dtype), shown)
        patches = patches.at[jnp.arange(len(patches))[:, None], masked].set(shown)
        tokens = encode(self.encoder, to_images(patches, self.encoder, images.shape[1:3]), train=train)
        return Dense(2 ** (self.output_channel_bits * images.shape[-1]), name="to_bits")(take(tokens, masked))

    def __call__(
        self, images: Images, masked: Int[Array, "b m"], *, train: bool = False, **drawn: Array
    ) -> Float[Array, "b"]:
        patches = take(to_patches(images, self.encoder), masked)
        bins = images.shape[-1], self.output_channel_bits, self.max_pixel_val
        labels = mean_colours(patches, *bins, self.mean, self.std)
        logits = self.classify(images, masked, **drawn, train=train)
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        return -jnp.take_along_axis(log_p, labels[:, :, None], axis=-1).mean(axis=(1, 2))

    torch_rules = (("encoder", "transformer"),)
    torch_aliases = ((r"transformer\.to_patch_embedding\.(\d+)\.(\w+)", r"patch_to_emb.0.\1.\2"),)


@dataclasses.dataclass(frozen=True)
class MPP(Pretraining):
    """Cross-entropy of the mean colour of masked patches, in `2**output_channel_bits` bins for each channel.

    Args:
        encoder: a model that returns a token for each patch.
        output_channel_bits: bits of a channel's bin index.
        max_pixel_val: largest pixel before normalisation.
        mask_prob: share of the patches to mask, rounded up to whole patches.
        replace_prob: share of the masked patches that are replaced by the mask token.
        random_patch_prob: share of the masked patches that are replaced by a random patch of the image,
            possibly the same one. The remaining masked patches are not changed.
        mean: mean of each channel with which images are normalised, or None if they are not.
        std: standard deviation of each channel with which images are normalised, or None.

    Raises:
        ValueError: for an unsuitable encoder or invalid values.
    """

    output_channel_bits: int = 3
    max_pixel_val: float = 1.0
    mask_prob: float = 0.15
    replace_prob: float = 0.5
    random_patch_prob: float = 0.5
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self):
        check_encoder(self.encoder, methods=("encode",), sealed=False)
        check_share("mask_prob", self.mask_prob)
        at_least(self, output_channel_bits=1)
        if self.max_pixel_val <= 0:
            raise ValueError(f"max_pixel_val={self.max_pixel_val!r}: expected more than 0")
        for name in ("replace_prob", "random_patch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected 0 to 1")
        if self.replace_prob + self.random_patch_prob > 1:
            raise ValueError(
                f"random_patch_prob={self.random_patch_prob}: expected at most 1 - replace_prob={self.replace_prob}"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"std={self.std!r}: expected mean and std to be given together, but mean={self.mean!r}")

    @property
    def model(self) -> MaskedPatchPrediction:
        return MaskedPatchPrediction(self.encoder, self.output_channel_bits, self.max_pixel_val, self.mean, self.std)

    def draw(self, key: Array, images: Array) -> dict[str, Array]:
        patches = count_patches(self.encoder, images)
        keys = jax.random.split(key, 4)
        masked = shuffled(keys[0], len(images), patches)[:, : math.ceil(self.mask_prob * patches)]
        left = 1 - self.replace_prob
        return {
            "masked": masked,
            "replaced": jax.random.bernoulli(keys[1], self.replace_prob, masked.shape),
            "exchanged": jax.random.bernoulli(keys[2], self.random_patch_prob / left if left else 0.0, masked.shape),
            "others": jax.random.randint(keys[3], masked.shape, 0, patches),
        }
