"""ViT: an image as a sequence of patches, read by a plain transformer.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929. Upstream: vit_pytorch/vit.py.
Differs from upstream: tokens and positions start at a deviation of 0.02 (upstream: 1), as in the authors' code.
Differs from the paper: a norm before and after the patch projection, no bias in query, key and value.
Axes: b batch, n tokens, d dim, k classes.
"""

import numpy as np
from flax import linen as nn
from jaxtyping import Array

from vit_jax.layers import Dense, PlainViT, Transformer
from vit_jax.layers.presets import TINY, vit_sizes
from vit_jax.layers.rules import PATCH_EMBED_RULES, TRANSFORMER_RULES


class ViT(PlainViT):
    """The plain ViT; where it pools the mean it has no class token."""

    def make_transformer(self) -> nn.Module:
        return Transformer(self.dim, self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout)

    def make_tokens(self, patches: int) -> tuple[Array, Array]:
        init, classes = nn.initializers.normal(0.02), int(self.pool == "cls")
        pos_embedding = self.param("pos_embedding", init, (patches + classes, self.dim))
        return self.param("cls_token", init, (1, self.dim)) if classes else pos_embedding[:0], pos_embedding

    def make_head(self) -> nn.Module:
        return Dense(self.num_classes)


PRESETS = {
    "tiny": TINY,
    "ti16": vit_sizes(192),
    "s16": vit_sizes(384),
    "b16": vit_sizes(768),
    "b32": vit_sizes(768, patch_size=32),
    "l16": vit_sizes(1024, depth=24),
    "h14": vit_sizes(1280, depth=32, patch_size=14, heads=16, dim_head=80),
}

TORCH_RULES = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES)


def torch_constants(model: ViT) -> dict[str, np.ndarray]:
    """Upstream stores an empty class token where the mean is pooled."""
    return {"cls_token": np.zeros((0, model.dim), np.float32)} if model.pool == "mean" else {}
