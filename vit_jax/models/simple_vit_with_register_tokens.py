"""SimpleViT with register tokens: places to keep global information, so that no patch is misused as one.

Source: Darcet et al. 2023, arXiv:2309.16588. Upstream: vit_pytorch/simple_vit_with_register_tokens.py.
Differs from upstream: registers start at a deviation of 0.02 (upstream: 1); `num_classes=0` gives the patches' tokens.
Differs from the paper: a SimpleViT (mean of the patches, computed positions) in place of a ViT with a class token.
Axes: b batch, n patches, e extra tokens, d dim.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import append
from vit_jax.models.simple_vit import TORCH_RULES, SimpleViT

__all__ = ["PRESETS", "TORCH_RULES", "SimpleViTWithRegisterTokens"]


class SimpleViTWithRegisterTokens(SimpleViT):
    """`SimpleViT` whose transformer also sees `num_register_tokens` learned tokens, which are then thrown away."""

    num_register_tokens: int = 4

    def setup(self):
        super().setup()
        init = nn.initializers.normal(0.02)
        self.register_tokens = self.param("register_tokens", init, (self.num_register_tokens, self.dim))

    def encode(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None, *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Tokens after the transformer: the patches, then the extra tokens, without the registers."""
        x = self.embed(images, extra_tokens)
        return self.transformer(append(x, self.register_tokens))[:, : x.shape[1]]


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "b16": dict(image_size=224, patch_size=16, dim=768, depth=12, heads=12, mlp_dim=3072),
    "l14": dict(image_size=224, patch_size=14, dim=1024, depth=24, heads=16, mlp_dim=4096),
}
