"""Masked patch prediction: what colour are, on average, the patches that were hidden or exchanged?

Source: Dosovitskiy et al. 2020, arXiv:2010.11929, self-supervision. Upstream: `MPP` in vit_pytorch/mpp.py.
Differs from upstream: it runs; upstream takes the class token and positions of its ViT for a batch's and crashes. An
encoder needs no class token; bins are counted, so that rounding adds none; shares above 1 in all are refused.
Differs from the paper: patches are masked before they are embedded, and 15 percent of them (paper: 50), half with the
mask token, half with another patch by default (paper: 80 percent, 10, and 10 as they are).
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
    """The classes of patches: which of `2**bits` bins the mean of each channel falls into, the first counting least.

    Bins end at multiples of `max_pixel_val / 2**bits`, which belong to them. Values are times `std`, plus `mean`.
    Raises ValueError unless these have a number for each channel.
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
    """An encoder and a linear classifier: images (b, H, W, c), and what becomes of their patches, to losses (b,)."""

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
        """Logits of the masked patches, of which those `replaced` are the mask token, and those else that are
        `exchanged` the patches of the image with the numbers `others`."""
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
    """Cross-entropy of the masked patches' classes: their mean colour, in `2**output_channel_bits` steps a channel.

    Of the patches the share `mask_prob` is masked, rounded up. Of these the share `replace_prob` becomes a mask token,
    `random_patch_prob` another patch of the image, by chance itself, and the rest stays. `encoder` is any model that
    gives a token for each patch. Pixels of images are at most `max_pixel_val` once they are times `std`, plus `mean`.
    Raises ValueError for an encoder that cannot be used, and for values that make no sense.
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
            raise ValueError(f"std={self.std!r}: expected to be given with mean={self.mean!r}, or neither")

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
