"""SimpleViT with patch dropout: trained on a random subset of each image's patches.

Derives from the frame `BaseSimpleViT` and drops patches before the transformer.

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
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the size of each image, which may be any that `patch_size` divides.
    At least one patch is kept.

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
        patch_dropout: share of the patches to drop in training, at least 0 and below 1.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `dim` is not a multiple of 4 above
            4, or `patch_dropout` is not in [0, 1).
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
        """Tokens before the transformer: the patches that are kept, then the extra tokens, which are never dropped."""
        x = self.drop_patches(super().embed(images, patches=patches), train=train)
        return x if extra_tokens is None else append(x, extra_tokens)


PRESETS = simple_vit.PRESETS
