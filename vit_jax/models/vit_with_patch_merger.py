"""ViT with PatchMerger: half-way through, a few learned queries gather all tokens into as many.

Source: Renggli et al. 2022, arXiv:2202.12015. Upstream: vit_pytorch/vit_with_patch_merger.py.
Differs from upstream: `num_classes=0` gives tokens; positions start at a deviation of 0.02 (upstream: 1).
Differs from the paper: a norm before and after the patch projection, no bias in query, key and value.
Axes: b batch, n tokens, m merged tokens, d dim, k classes.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Attention, Dense, FeedForward, LayerNorm, PlainViT, softmax
from vit_jax.layers.rules import PATCH_EMBED_RULES, TRANSFORMER_RULES


class PatchMerger(nn.Module):
    """Learned queries attend to the normed tokens, which are keys and values at once: (b, n, d) to (b, m, d)."""

    num_tokens_out: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
        dim = x.shape[-1]
        queries = self.param("queries", nn.initializers.normal(1.0), (self.num_tokens_out, dim))
        x = LayerNorm(name="norm")(x)
        attn = softmax(jnp.einsum("md,bnd->bmn", queries, x) * dim**-0.5)
        self.sow("intermediates", "attn", attn[:, None])  # of one head
        return jnp.einsum("bmn,bnd->bmd", attn, x)


class Transformer(nn.Module):
    """`depth` blocks, each with its residuals, and a last norm; behind block `merge_layer` tokens are merged."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float
    merge_layer: int
    num_merged: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b m d"]:
        merge = PatchMerger(self.num_merged, name="patch_merger")
        for i in range(self.depth):
            x = x + Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")(x, train=train)
            x = x + FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train)
            if i + 1 == self.merge_layer:
                x = merge(x)
        if self.merge_layer == 0 and self.is_initializing():
            merge(x)  # for its parameters, which upstream has all the same
        return LayerNorm(name="norm")(x)


class ViTWithPatchMerger(PlainViT):
    """The plain ViT, without a class token, whose tokens become `patch_merge_num_tokens`.

    They do so behind block `patch_merge_layer`, counted from 1; by default behind the first half, and for 0 (which is
    half of a single block) never.
    Raises ValueError for a `patch_merge_layer` beyond `depth`, or no tokens to merge into.
    """

    patch_merge_layer: int | None = None
    patch_merge_num_tokens: int = 8
    pool: str = dataclasses.field(default="mean", init=False)

    def __post_init__(self):
        if self.patch_merge_layer is not None and not 0 <= self.patch_merge_layer <= self.depth:
            raise ValueError(f"patch_merge_layer={self.patch_merge_layer!r}: expected 0 to depth={self.depth}")
        if self.patch_merge_num_tokens < 1:
            raise ValueError(f"patch_merge_num_tokens={self.patch_merge_num_tokens!r}: expected at least 1")
        super().__post_init__()

    def make_tokens(self, patches: int) -> tuple[Array, Array]:
        """No class token, (1, 0, d), and positions, (1, n + 1, d): upstream has one more than it uses."""
        pos_embedding = self.param("pos_embedding", nn.initializers.normal(0.02), (1, patches + 1, self.dim))
        return pos_embedding[:, :0], pos_embedding

    def make_transformer(self) -> nn.Module:
        layer = self.depth // 2 if self.patch_merge_layer is None else self.patch_merge_layer
        blocks = (self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout)
        return Transformer(*blocks, merge_layer=layer, num_merged=self.patch_merge_num_tokens)

    def make_head(self) -> nn.Module:
        return Dense(self.num_classes)

    def encode(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b m d"]:
        """Tokens after the transformer; extra ones would be merged with the rest."""
        return self.transformer(self.embed(images, train=train), train=train)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "b32": dict(image_size=224, patch_size=32, dim=768, depth=12, heads=12, mlp_dim=3072),
    "b16": dict(image_size=224, patch_size=16, dim=768, depth=12, heads=12, mlp_dim=3072),
    "l16": dict(image_size=224, patch_size=16, dim=1024, depth=24, heads=16, mlp_dim=4096),
}

TORCH_RULES = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES, ("mlp_head", "mlp_head.1"))
