"""SimpleViT that also sees the image's spectrum: patches of its Fourier transform attend beside patches of pixels.

Source: Beyer et al. 2022 (BaseSimpleViT), arXiv:2205.01580; the spectrum is upstream's own idea.
Upstream: vit_pytorch/simple_vit_with_fft.py.
Differs from upstream: `num_classes=0` gives the tokens of the pixels' patches.
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
    """`SimpleViT` whose transformer also sees patches of the spectrum, `freq_patch_size` frequencies high and wide.

    Raises ValueError when `freq_patch_size` does not divide `image_size`.
    """

    patches_leak: ClassVar[bool] = True  # the spectrum depends on all pixels
    freq_patch_size: int | tuple[int, int]

    def __post_init__(self):
        super().__post_init__()
        sides = zip(pair("image_size", self.image_size), pair("freq_patch_size", self.freq_patch_size), strict=True)
        divides = all(image % patch == 0 for image, patch in sides)
        expected = f"to divide image_size={self.image_size!r}, height by height and width by width"
        expect(self, "freq_patch_size", divides, expected)

    def setup(self):
        super().setup()
        self.to_freq_embedding = PatchEmbed(pair("freq_patch_size", self.freq_patch_size), self.dim)

    def embed_spectrum(self, images: Images) -> Tokens:
        """Tokens of the spectrum, with positions of their own."""
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
