"""SimpleViT with register tokens, which store global information that patches would otherwise hold.

Derives from the frame `BaseSimpleViT` and adds registers to the transformer's input.

Source: Darcet et al. 2023, arXiv:2309.16588. Upstream: vit_pytorch/simple_vit_with_register_tokens.py.
Differs from upstream: registers have an initial std of 0.02 (upstream: 1); `num_classes=0` gives the patches' tokens.
Differs from the paper: a SimpleViT (mean of the patches, computed positions) in place of a ViT with a class token.
Axes: b batch, n patches, e extra tokens, d dim.
"""

import numpy as np
from flax import linen as nn

from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers import append
from vit_jax.layers.shapes import Tokens


class SimpleViTWithRegisterTokens(BaseSimpleViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the size of each image, which may be any that `patch_size` divides.
    Register tokens are removed after the transformer.

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
        num_register_tokens: number of register tokens.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `dim` is not a multiple of 4
            above 4.
    """

    num_register_tokens: int = 4

    def setup(self):
        super().setup()
        if self.num_register_tokens:  # an empty parameter cannot be saved
            init = nn.initializers.normal(0.02)
            self.register_tokens = self.param("register_tokens", init, (self.num_register_tokens, self.dim))

    def transform(self, tokens: Tokens, *, train: bool = False) -> Tokens:
        """Apply the transformer to the tokens of `embed` and the registers, which are then removed."""
        x = append(tokens, self.register_tokens) if self.num_register_tokens else tokens
        return self.transformer(x, train=train)[:, : tokens.shape[1]]

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores an empty parameter where there are no registers."""
        return {} if self.num_register_tokens else {"register_tokens": np.zeros((0, self.dim), np.float32)}


PRESETS = {"tiny": TINY, "b16": vit_sizes(768), "l14": vit_sizes(1024, depth=24, patch_size=14)}
