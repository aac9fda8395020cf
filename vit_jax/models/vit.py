"""ViT: an image as a sequence of patches, read by a plain transformer.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929. Upstream: vit_pytorch/vit.py.
Differs from upstream: tokens and positions start at a deviation of 0.02 (upstream: 1), as in the authors' code.
Differs from the paper: a norm before and after the patch projection, no bias in query, key and value.
Axes: b batch, n tokens, d dim, k classes.
"""

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import check_arguments, check_images, pair, patch_grid
from vit_jax.layers.dense import Dense
from vit_jax.layers.patch_embed import PATCH_EMBED_RULES, PatchEmbed
from vit_jax.layers.tokens import add_positions, append, pool_tokens, prepend
from vit_jax.layers.transformer import TORCH_RULES as TRANSFORMER_RULES
from vit_jax.layers.transformer import Transformer


class ViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may be smaller than `image_size` (pixels, or (height, width)); it then gets the first positions.
    Raises ValueError when `patch_size` does not divide `image_size`, or for a `pool` other than "cls" and "mean".
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    pool: str = "cls"
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    def setup(self):
        rows, columns = patch_grid(self.image_size, self.patch_size)
        init = nn.initializers.normal(0.02)
        self.to_patch_embedding = PatchEmbed(pair("patch_size", self.patch_size), self.dim)
        if self.pool == "cls":
            self.cls_token = self.param("cls_token", init, (1, self.dim))
        tokens = rows * columns + (self.pool == "cls")
        self.pos_embedding = self.param("pos_embedding", init, (tokens, self.dim))
        self.embedding_dropout = nn.Dropout(self.emb_dropout)
        self.transformer = Transformer(self.dim, self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout)
        if self.num_classes:
            self.mlp_head = Dense(self.num_classes)

    def encode(
        self,
        images: Float[Array, "b H W c"],
        extra_tokens: Float[Array, "e d"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b n d"]:
        """Tokens after the transformer: the class token if there is one, the patches, the extra tokens."""
        check_images(images, self.channels)
        x = self.to_patch_embedding(images)
        if self.pool == "cls":
            x = prepend(self.cls_token, x)
        x = add_positions(x, self.pos_embedding)
        if extra_tokens is not None:
            x = append(x, extra_tokens)
        x = self.embedding_dropout(x, deterministic=not train)
        return self.transformer(x, train=train)

    def head(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, without the extra ones."""
        return self.mlp_head(pool_tokens(tokens, self.pool))

    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        tokens = self.encode(images, train=train)
        return self.head(tokens) if self.num_classes else tokens


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
