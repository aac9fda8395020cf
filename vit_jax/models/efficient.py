"""EfficientViT: a ViT around any transformer that the user brings.

Upstream: vit_pytorch/efficient.py (no paper: it lets efficient attentions be tried in a ViT).
Differs from upstream: patches may be non-square; `num_classes=0` gives tokens; tokens and positions start at a
deviation of 0.02 (upstream: 1).
Axes: b batch, n tokens, e extra tokens, d dim, k classes.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import NormHead, PatchEmbed, Transformer, add_positions, append, pool_tokens, prepend
from vit_jax.layers.check import check_arguments, check_images, pair, patch_grid
from vit_jax.layers.rules import HEAD_RULES, PATCH_EMBED_RULES


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
        if not isinstance(self.transformer, nn.Module):
            raise ValueError(f"transformer={self.transformer!r}: expected a module, as create_model makes them")
        super().__post_init__()

    def setup(self):
        rows, columns = patch_grid(self.image_size, self.patch_size)
        init = nn.initializers.normal(0.02)
        self.to_patch_embedding = PatchEmbed(pair("patch_size", self.patch_size), self.dim)
        self.cls_token = self.param("cls_token", init, (1, 1, self.dim))
        self.pos_embedding = self.param("pos_embedding", init, (1, rows * columns + 1, self.dim))
        if self.num_classes:
            self.mlp_head = NormHead(self.num_classes)

    def encode(
        self,
        images: Float[Array, "b H W c"],
        extra_tokens: Float[Array, "e d"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b n d"]:
        """Tokens after the transformer: the class token, the patches, the extra tokens."""
        check_images(images, self.channels)
        x = prepend(self.cls_token, self.to_patch_embedding(images))
        x = add_positions(x, self.pos_embedding)
        if extra_tokens is not None:
            x = append(x, extra_tokens)
        return self.transformer(x, train=train)

    def head(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, without the extra ones."""
        return self.mlp_head(pool_tokens(tokens, self.pool))

    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        tokens = self.encode(images, train=train)
        return self.head(tokens) if self.num_classes else tokens


PRESETS = {
    "tiny": dict(
        image_size=32,
        patch_size=4,
        dim=64,
        transformer=Transformer(dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    ),
}

TORCH_RULES = (*PATCH_EMBED_RULES, *HEAD_RULES)
