"""EfficientViT: a ViT around a transformer module that the caller supplies.

Derives from the frame `TokenViT` and makes its modules, except for the transformer.

Upstream: vit_pytorch/efficient.py (no paper; it lets users try efficient attentions in a ViT).
Differs from upstream: patches may be non-square; `num_classes=0` gives tokens; tokens and positions have an
initial std of 0.02 (upstream: 1).
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

    An image may be smaller than `image_size`; it then gets the first positions.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        transformer: a module that maps tokens (b, n, dim) to the same shape and takes `train=`,
            such as `create_model("vit:Transformer", dim=64, depth=4, heads=4, dim_head=16,
            mlp_dim=128)`.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all
            tokens.
        channels: channels of an image.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `pool` is neither "cls" nor
            "mean".
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
