"""SimpleViT with additional tokens for patches of the image's Fourier transform.

Derives from the frame `BaseSimpleViT` and adds tokens of the spectrum to the transformer's input.

Source: Beyer et al. 2022 (SimpleViT), arXiv:2205.01580; the spectrum is upstream's addition.
Upstream: vit_pytorch/simple_vit_with_fft.py.
Differs from upstream: `num_classes=0` gives the tokens of the pixel patches.
Differs from the paper: the spectrum; a norm before and after each patch projection, no biases in attention.
Axes: b batch, n patches, e extra tokens, d dim.
"""

from typing import ClassVar

import jax.numpy as jnp
from einops import rearrange

from vit_jax.frames.rules import sequential_rules
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers import PatchEmbed, sincos_2d
from vit_jax.layers.check import expect, pair, patch_grid
from vit_jax.layers.shapes import ExtraTokens, Images, Patches, Tokens
from vit_jax.models import simple_vit


class SimpleViTWithFFT(BaseSimpleViT, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the size of each image, which may be any that `patch_size` divides.
    The tokens of the spectrum are removed after the transformer.

    Args:
        image_size: pixels, or (height, width); only checked against `patch_size`.
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token, a multiple of 4.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        freq_patch_size: frequencies of a patch of the spectrum, or (height, width).
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` or `freq_patch_size` does not divide `image_size`, or `dim` is
            not a multiple of 4 above 4.
    """

    patches_leak: ClassVar[bool] = True  # the spectrum depends on all pixels
    freq_patch_size: int | tuple[int, int]

    def __post_init__(self):
        super().__post_init__()
        sides = zip(pair("image_size", self.image_size), pair("freq_patch_size", self.freq_patch_size), strict=True)
        divides = all(image % patch == 0 for image, patch in sides)
        expected = f"sides that divide image_size={self.image_size!r}, height by height and width by width"
        expect(self, "freq_patch_size", divides, expected)

    def setup(self):
        super().setup()
        self.to_freq_embedding = PatchEmbed(pair("freq_patch_size", self.freq_patch_size), self.dim)

    def embed_spectrum(self, images: Images) -> Tokens:
        """Tokens of the spectrum, with positions."""
        spectrum = jnp.fft.fft2(images.astype(jnp.float32), axes=(1, 2))
        parts = jnp.stack([spectrum.real, spectrum.imag], axis=3).astype(images.dtype)
        x = self.to_freq_embedding(rearrange(parts, "b h w reim c -> b h w (reim c)"))
        return x + jnp.asarray(sincos_2d(*patch_grid(images.shape[1:3], self.freq_patch_size), self.dim), x.dtype)[None]

    def encode(
        self,
        images: Images,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens after the transformer: the patches, then the extra tokens, without those of the spectrum."""
        x = self.embed(images, extra_tokens, patches=patches)
        spectrum = self.embed_spectrum(images)
        return self.transformer(jnp.concatenate([spectrum, x], axis=1), train=train)[:, spectrum.shape[1] :]

    torch_rules = (
        *BaseSimpleViT.torch_rules,
        *sequential_rules("to_freq_embedding", "to_freq_embedding", norm_in=1, proj=2, norm_out=3),
    )


PRESETS = {name: sizes | dict(freq_patch_size=sizes["patch_size"]) for name, sizes in simple_vit.PRESETS.items()}
