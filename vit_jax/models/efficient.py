"""EfficientViT: a ViT around any transformer that the user brings.

Upstream: vit_pytorch/efficient.py (no paper: it lets efficient attentions be tried in a ViT).
Differs from upstream: patches may be non-square; `num_classes=0` gives tokens; tokens and positions start at a
deviation of 0.02 (upstream: 1).
Axes: b batch, n tokens, e extra tokens, d dim, k classes.
"""

import math

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import NormHead, PatchEmbed, Transformer, add_positions, append, pool_tokens, prepend
from vit_jax.layers.check import check_arguments, check_images, expect, pair, patch_grid
from vit_jax.layers.rules import HEAD_RULES, PATCH_EMBED_RULES
from vit_jax.layers.shapes import ExtraTokens, Images, Output, Tokens


class EfficientViT(nn.Module):
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
        if self.num_classes:
            self.mlp_head = NormHead(self.num_classes)

    def encode(self, images: Images, extra_tokens: ExtraTokens | None = None, *, train: bool = False) -> Tokens:
        """Tokens after the transformer: the class token, the patches, the extra tokens."""
        check_images(images, self.channels)
        x = add_positions(prepend(self.cls_token, self.to_patch_embedding(images)), self.pos_embedding)
        return self.transformer(x if extra_tokens is None else append(x, extra_tokens), train=train)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, without the extra ones."""
        return self.mlp_head(pool_tokens(tokens, self.pool))

    def __call__(self, images: Images, *, train: bool = False) -> Output:
        tokens = self.encode(images, train=train)
        return self.head(tokens) if self.num_classes else tokens


_TRANSFORMER = Transformer(dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128)
PRESETS = {"tiny": dict(image_size=32, patch_size=4, dim=64, transformer=_TRANSFORMER)}

TORCH_RULES = (*PATCH_EMBED_RULES, *HEAD_RULES)
