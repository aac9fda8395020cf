"""ViT: an image as a sequence of patches, read by a plain transformer.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929. Upstream: vit_pytorch/vit.py.
Differs from upstream: tokens and positions start at a deviation of 0.02 (upstream: 1), as in the authors' code.
Differs from the paper: a norm before and after the patch projection, no bias in query, key and value.
Axes: b batch, n tokens, d dim, k classes.
"""

import numpy as np
from flax import linen as nn
from jaxtyping import Array

from vit_jax.layers.dense import Dense
from vit_jax.layers.patch_embed import PATCH_EMBED_RULES
from vit_jax.layers.plain_vit import PlainViT
from vit_jax.layers.transformer import TORCH_RULES as TRANSFORMER_RULES
from vit_jax.layers.transformer import Transformer


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


def _paper(patch_size, dim, depth, heads, mlp_dim):
    return dict(image_size=224, patch_size=patch_size, dim=dim, depth=depth, heads=heads, mlp_dim=mlp_dim)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "ti16": _paper(16, 192, 12, 3, 768),
    "s16": _paper(16, 384, 12, 6, 1536),
    "b16": _paper(16, 768, 12, 12, 3072),
    "b32": _paper(32, 768, 12, 12, 3072),
    "l16": _paper(16, 1024, 24, 16, 4096),
    "h14": {**_paper(14, 1280, 32, 16, 5120), "dim_head": 80},
}

TORCH_RULES = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES)


def torch_constants(model: ViT) -> dict[str, np.ndarray]:
    """Upstream stores an empty class token where the mean is pooled."""
    return {"cls_token": np.zeros((0, model.dim), np.float32)} if model.pool == "mean" else {}
