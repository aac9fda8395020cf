"""SimpleViT with patch dropout: trained on a random part of the patches, as most images have more than they need.

Source: Liu et al. 2022, arXiv:2208.07220. Upstream: vit_pytorch/simple_vit_with_patch_dropout.py.
Differs from upstream: `num_classes=0` gives tokens.
Differs from the paper: a SimpleViT (mean of the patches, no class token) in place of a DeiT or Swin.
Axes: b batch, n patches, e extra tokens, d dim.
"""

from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers import PatchDropout, append
from vit_jax.layers.check import expect
from vit_jax.layers.shapes import ExtraTokens, Images, Patches, Tokens
from vit_jax.models import simple_vit


class SimpleViTWithPatchDropout(BaseSimpleViT):
    """`SimpleViT` that, when `train`, sees `max(1, int(n * (1 - patch_dropout)))` of an image's n patches.

    Raises ValueError for a `patch_dropout` below 0, or of 1 and above.
    """

    patch_dropout: float = 0.5

    def __post_init__(self):
        expect(self, "patch_dropout", 0 <= self.patch_dropout < 1, "at least 0 and less than 1")
        super().__post_init__()

    def setup(self):
        super().setup()
        self.drop_patches = PatchDropout(self.patch_dropout)

    def embed(
        self,
        images: Images,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens before the transformer: the patches that are left, then the extra tokens, of which none is dropped."""
        x = self.drop_patches(super().embed(images, patches=patches), train=train)
        return x if extra_tokens is None else append(x, extra_tokens)


PRESETS = simple_vit.PRESETS
