"""SimpleViT with register tokens: places to keep global information, so that no patch is misused as one.

Source: Darcet et al. 2023, arXiv:2309.16588. Upstream: vit_pytorch/simple_vit_with_register_tokens.py.
Differs from upstream: registers start at a deviation of 0.02 (upstream: 1); `num_classes=0` gives the patches' tokens.
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
    """`SimpleViT` whose transformer also sees `num_register_tokens` learned tokens, which are then thrown away."""

    num_register_tokens: int = 4

    def setup(self):
        super().setup()
        if self.num_register_tokens:  # an empty parameter cannot be saved
            init = nn.initializers.normal(0.02)
            self.register_tokens = self.param("register_tokens", init, (self.num_register_tokens, self.dim))

    def transform(self, tokens: Tokens, *, train: bool = False) -> Tokens:
        """Tokens after the transformer, without the registers that it reads besides."""
        x = append(tokens, self.register_tokens) if self.num_register_tokens else tokens
        return self.transformer(x, train=train)[:, : tokens.shape[1]]

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores an empty parameter where there are no registers."""
        return {} if self.num_register_tokens else {"register_tokens": np.zeros((0, self.dim), np.float32)}


PRESETS = {"tiny": TINY, "b16": vit_sizes(768), "l14": vit_sizes(1024, depth=24, patch_size=14)}
