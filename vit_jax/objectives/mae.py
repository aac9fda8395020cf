"""MAE (masked autoencoder): an encoder sees a quarter of the patches, and a small decoder predicts the other ones.

Source: He et al. 2021, arXiv:2111.06377. Upstream: `MAE` in vit_pytorch/mae.py.
Differs from upstream: works with a class token, for which upstream has no position; the class token goes through
encoder and decoder (`class_token=False` leaves it out, as upstream intends); targets are normalised (not with
`norm_pixels=False`); the decoder is as wide as the encoder by default; mask token and positions start at a standard
deviation of 0.02 (upstream: 1).
Differs from the paper: the decoder has one layer by default, and its positions, also the class token's, are learned.
Axes: b batch, n patches, m masked patches, k seen patches, l tokens before the patches, d dim, p values of a patch.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from vit_jax.frames.rules import TRANSFORMER_RULES
from vit_jax.layers import Attention, Dense, FeedForward, NormedBlocks
from vit_jax.layers.check import at_least
from vit_jax.layers.shapes import Images
from vit_jax.objectives.masked import (
    PATCH_ALIASES,
    check_encoder,
    check_share,
    draw_masked,
    embed,
    fill,
    take,
    to_patches,
    transform,
)
from vit_jax.objectives.pretrain import Pretraining


def normalize_patches(patches: Float[Array, "b n p"]) -> Float[Array, "b n p"]:
    """Return each patch normalised to mean 0 and variance 1.

    As in the authors' code, the variance is over p - 1, and 1e-6 is added to it.
    """
    variance = patches.var(axis=-1, ddof=1, keepdims=True)
    return (patches - patches.mean(axis=-1, keepdims=True)) * lax.rsqrt(variance + 1e-6)


class Autoencoder(nn.Module):
    """An encoder and its decoder: images (b, H, W, c) and the indices of masked and seen patches to losses (b,).

    The fields are those of `MAE`.
    """

    encoder: nn.Module
    decoder_dim: int | None = None
    decoder_depth: int = 1
    decoder_heads: int = 8
    decoder_dim_head: int = 64
    norm_pixels: bool = True
    class_token: bool = True

    @nn.compact
    def reconstruct(
        self, images: Images, masked: Int[Array, "b m"], seen: Int[Array, "b k"], *, train: bool = False
    ) -> Float[Array, "b m p"]:
        """Predict the values of the masked patches from the seen ones."""
        fill(self, images)
        first, patches = embed(self.encoder, images)
        (_, before, encoder_dim), count = first.shape, patches.shape[1]
        if not self.class_token:
            first = first[:, :0]
        tokens = jnp.concatenate([first, take(patches, seen)], axis=1)
        tokens = transform(self.encoder, tokens, train=train)

        dim = self.decoder_dim or encoder_dim
        if dim != encoder_dim:
            tokens = Dense(dim, name="enc_to_dec")(tokens)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (dim,))
        tokens = jnp.concatenate([jnp.broadcast_to(mask_token, (*masked.shape, dim)), tokens], axis=1)
        # Upstream never reads the last row; here it is the position of the class token. Attention depends only on the
        # positions that are added, not on the order of tokens, so tokens are not put back in order.
        positions = nn.Embed(count + before, dim, embedding_init=nn.initializers.normal(0.02), name="decoder_pos_emb")
        of_first = jnp.broadcast_to(count + jnp.arange(first.shape[1]), first.shape[:2])
        tokens = tokens + positions(jnp.concatenate([masked, of_first, seen], axis=1))
        attention = functools.partial(Attention, self.decoder_heads, self.decoder_dim_head)
        feed_forward = functools.partial(FeedForward, 4 * dim)
        tokens = NormedBlocks(self.decoder_depth, attention, feed_forward, name="decoder")(tokens, train=train)
        return Dense(to_patches(images, self.encoder).shape[-1], name="to_pixels")(tokens[:, : masked.shape[1]])

    def __call__(
        self, images: Images, masked: Int[Array, "b m"], seen: Int[Array, "b k"], *, train: bool = False
    ) -> Float[Array, "b"]:
        targets = take(to_patches(images, self.encoder), masked).astype(jnp.float32)
        if self.norm_pixels:
            targets = normalize_patches(targets)
        predicted = self.reconstruct(images, masked, seen, train=train)
        return jnp.square(predicted.astype(jnp.float32) - targets).mean(axis=(1, 2))

    torch_rules = TRANSFORMER_RULES
    torch_aliases = PATCH_ALIASES


@dataclasses.dataclass(frozen=True)
class MAE(Pretraining):
    """Mean squared error of the predicted pixels of masked patches.

    Args:
        encoder: a model of patches that takes any number of them, such as most variants of ViT and SimpleViT.
        masking_ratio: share of the patches to mask, rounded down to whole patches.
        decoder_dim: width of the decoder; None for that of the encoder.
        decoder_depth: layers of the decoder.
        decoder_heads: attention heads of the decoder.
        decoder_dim_head: width of a head.
        norm_pixels: predict normalised patches, as in the paper.
        class_token: keep tokens before the patches, such as a class token, so that they are pretrained too.

    Raises:
        ValueError: for an unsuitable encoder or invalid values.
    """

    masking_ratio: float = 0.75
    decoder_dim: int | None = None
    decoder_depth: int = 1
    decoder_heads: int = 8
    decoder_dim_head: int = 64
    norm_pixels: bool = True
    class_token: bool = True

    def __post_init__(self):
        check_encoder(self.encoder, methods=("embed", "encode", "transform"), movable=True)
        check_share("masking_ratio", self.masking_ratio)
        at_least(self, decoder_dim=1, decoder_depth=0, decoder_heads=1, decoder_dim_head=1)

    @property
    def model(self) -> Autoencoder:
        decoder = self.decoder_dim, self.decoder_depth, self.decoder_heads, self.decoder_dim_head
        return Autoencoder(self.encoder, *decoder, self.norm_pixels, self.class_token)

    def draw(self, key: Array, images: Array) -> dict[str, Array]:
        masked, seen = draw_masked(key, self.encoder, images, self.masking_ratio)
        return {"masked": masked, "seen": seen}
