"""ViT with PatchMerger: after half of the blocks, attention of a few learned queries merges all tokens.

Derives from the frame `PlainViT`, without class token, and overrides the transformer.

Source: Renggli et al. 2022, arXiv:2202.12015. Upstream: vit_pytorch/vit_with_patch_merger.py.
Differs from upstream: `num_classes=0` gives tokens; positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: a norm before and after the patch projection, no bias in query, key and value.
Axes: b batch, n tokens, m merged tokens, d dim, k classes.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames import PlainViT
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import PATCH_EMBED_RULES, TRANSFORMER_RULES
from vit_jax.layers import Blocks, Dense, LayerNorm, attend, sow_block
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.shapes import Images, Patches, Tokens


class PatchMerger(nn.Module):
    """Attention of learned queries to the normalised tokens, which are keys and values: (b, n, d) to (b, m, d)."""

    num_tokens_out: int

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "b m d"]:
        queries = self.param("queries", nn.initializers.normal(1.0), (self.num_tokens_out, x.shape[-1]))
        x = LayerNorm(name="norm")(x)[:, None]  # one head
        return attend(self, jnp.broadcast_to(queries, (x.shape[0], 1, *queries.shape)), x, x)


class Transformer(Blocks):
    """`Blocks` and a last norm; after block `merge_layer`, tokens are merged into `num_merged`."""

    merge_layer: int
    num_merged: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Float[Array, "b m d"]:
        merge = PatchMerger(self.num_merged, name="patch_merger")
        for i, drop_path in enumerate(self.drop_paths(train)):
            x = x + drop_path(self.attention(name=f"attn_{i}")(x, train=train))
            x = x + drop_path(self.feed_forward(name=f"ff_{i}")(x, train=train))
            if i + 1 == self.merge_layer:
                x = merge(x)
            sow_block(self, x)
        if self.merge_layer == 0 and self.is_initializing():
            merge(x)  # creates its parameters: upstream has them even so
        return LayerNorm(name="norm")(x)


class ViTWithPatchMerger(PlainViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to merged tokens (b, m, d).

    An image may be smaller than `image_size`; it then gets the first positions. The head reads the
    mean of the merged tokens.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for the merged tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        patch_merge_layer: block, counted from 1, after which tokens are merged, 0 for never; by
            default `depth // 2`.
        patch_merge_num_tokens: number of merged tokens.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `patch_merge_layer` is above
            `depth`, or there are no merged tokens.
    """

    patches_lost: ClassVar[bool] = True  # there is no output token for each patch
    patch_merge_layer: int | None = None
    patch_merge_num_tokens: int = 8
    pool: str = dataclasses.field(default="mean", init=False)

    def __post_init__(self):
        layer = self.patch_merge_layer
        expect(self, "patch_merge_layer", layer is None or 0 <= layer <= self.depth, f"0 to depth={self.depth}")
        at_least(self, patch_merge_num_tokens=1)
        super().__post_init__()

    def make_tokens(self, patches: int) -> tuple[Array, Array]:
        """No class token, (1, 0, d), and positions (1, n + 1, d), of which the last is unused, as in upstream."""
        pos_embedding = self.param("pos_embedding", nn.initializers.normal(0.02), (1, patches + 1, self.dim))
        return pos_embedding[:, :0], pos_embedding

    def make_transformer(self) -> nn.Module:
        layer = self.depth // 2 if self.patch_merge_layer is None else self.patch_merge_layer
        parts = (self.make_attention(), self.make_feed_forward())
        return Transformer(self.depth, *parts, layer, self.patch_merge_num_tokens, drop_path=self.drop_path)

    def make_head(self) -> nn.Module:
        return Dense(self.num_classes)

    def transform(self, tokens: Tokens, *, train: bool = False) -> Float[Array, "b m d"]:
        return self.transformer(tokens, train=train)

    def encode(self, images: Images, *, patches: Patches | None = None, train: bool = False) -> Float[Array, "b m d"]:
        """Tokens after the transformer. There are no extra tokens, as they would be merged too."""
        return super().encode(images, patches=patches, train=train)

    torch_rules = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES, ("mlp_head", "mlp_head.1"))


PRESETS = {"tiny": TINY, "b32": vit_sizes(768, patch_size=32), "b16": vit_sizes(768), "l16": vit_sizes(1024, depth=24)}
