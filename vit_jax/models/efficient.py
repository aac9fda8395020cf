"""EfficientViT: a ViT around any transformer that the user brings.

Upstream: vit_pytorch/efficient.py (no paper: it lets efficient attentions be tried in a ViT).
Differs from upstream: patches may be non-square; `num_classes=0` gives tokens; tokens and positions start at a
deviation of 0.02 (upstream: 1).
Axes: b batch, n tokens, e extra tokens, d dim, k classes.
"""

import math

from flax import linen as nn

from vit_jax.frames.arguments import check_arguments
from vit_jax.frames.plain_vit import TokenViT
from vit_jax.frames.rules import HEAD_RULES, PATCH_EMBED_RULES
from vit_jax.layers import NormHead, PatchEmbed
from vit_jax.layers.check import expect, pair, patch_grid
from vit_jax.models import vit


class EfficientViT(TokenViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    `transformer` maps tokens (b, n, dim) to the same shape, and is called with `train=` besides: for example
    `create_model("vit:Transformer", dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128)`.
    Raises ValueError when `patch_size` does not divide `image_size`, or for a `pool` other than "cls" and "mean".
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int
    transformer: nn.Module
    pool: str = "cls"
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        expect(self, "transformer", isinstance(self.transformer, nn.Module), "a module, as create_model makes them")
        super().__post_init__()

    def setup(self):
        init, patches = nn.initializers.normal(0.02), math.prod(patch_grid(self.image_size, self.patch_size))
        self.to_patch_embedding = PatchEmbed(pair("patch_size", self.patch_size), self.dim)
        self.cls_token = self.param("cls_token", init, (1, 1, self.dim))
        self.pos_embedding = self.param("pos_embedding", init, (1, patches + 1, self.dim))
        self.embedding_dropout = nn.Dropout(0.0)
        if self.num_classes:
            self.mlp_head = NormHead(self.num_classes)

    torch_rules = (*PATCH_EMBED_RULES, *HEAD_RULES)


_TRANSFORMER = vit.Transformer(dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128)
PRESETS = {"tiny": dict(image_size=32, patch_size=4, dim=64, transformer=_TRANSFORMER)}
