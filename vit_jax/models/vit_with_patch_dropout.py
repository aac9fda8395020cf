"""ViT with PatchDropout: trained on a random part of the patches, evaluated on all of them.

Source: Liu et al. 2022, arXiv:2208.07220. Upstream: vit_pytorch/vit_with_patch_dropout.py.
Differs from upstream: `num_classes=0` gives tokens; images may be smaller than `image_size`; tokens and positions start
at a deviation of 0.02 (upstream: 1).
Differs from the paper: the class token has no position; no bias in query, key and value.
Axes: b batch, n tokens, e extra tokens, d dim, k classes.
"""

import functools

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.attention import Attention
from vit_jax.layers.blocks import Blocks
from vit_jax.layers.check import check_images, pair
from vit_jax.layers.head import HEAD_RULES
from vit_jax.layers.patch_dropout import PatchDropout
from vit_jax.layers.patch_projection import PATCH_PROJECTION_RULES, PatchProjection
from vit_jax.layers.plain_vit import PlainViT
from vit_jax.layers.tokens import add_positions, append, prepend
from vit_jax.layers.transformer import TORCH_RULES as TRANSFORMER_RULES


class ViTWithPatchDropout(PlainViT):
    """The plain ViT that drops the share `patch_dropout` of the patches when `train`.

    Raises ValueError unless that is at least 0 and below 1.
    """

    patch_dropout: float = 0.25

    def __post_init__(self):
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout={self.patch_dropout!r}: expected at least 0 and below 1")
        super().__post_init__()

    def make_patch_embedding(self) -> nn.Module:
        return PatchProjection(pair("patch_size", self.patch_size), self.dim)

    def make_tokens(self, patches: int) -> tuple[Array, Array]:
        """Class token and positions of the patches alone, (1, 1, d) and (n, d)."""
        init = nn.initializers.normal(0.02)
        return self.param("cls_token", init, (1, 1, self.dim)), self.param("pos_embedding", init, (patches, self.dim))

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(Attention, self.heads, self.dim_head, self.dropout)
        return Blocks(self.depth, attention, self.mlp_dim, self.dropout)

    def setup(self):
        super().setup()
        self.drop_patches = PatchDropout(self.patch_dropout)

    def embed(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None, *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Tokens before the transformer: the class token, the patches that stay, the extra tokens."""
        check_images(images, self.channels)
        x = add_positions(self.to_patch_embedding(images), self.pos_embedding)
        x = prepend(self.cls_token, self.drop_patches(x, train=train))
        if extra_tokens is not None:
            x = append(x, extra_tokens)
        return self.embedding_dropout(x, deterministic=not train)


def _paper(dim):
    return dict(image_size=224, patch_size=16, dim=dim, depth=12, heads=dim // 64, mlp_dim=4 * dim)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "ti16": _paper(192),
    "s16": _paper(384),
    "b16": _paper(768),
}

TORCH_RULES = (
    *PATCH_PROJECTION_RULES,
    *TRANSFORMER_RULES,
    *HEAD_RULES,
)
