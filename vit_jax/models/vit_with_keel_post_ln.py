"""ViT with Keel: post-norm blocks that train at great depth because the residual is scaled up.

Derives from the frame `PlainViT` and overrides the transformer.

Source: Chen and Wei 2026, arXiv:2601.19895. Upstream: vit_pytorch/vit_with_keel_post_ln.py.
Differs from upstream: tokens and positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: images (paper: language models).
Axes: b batch, n tokens, d dim, k classes.
"""

import functools

import numpy as np
from flax import linen as nn
from jaxtyping import Array

from vit_jax.frames import PlainViT
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import PATCH_EMBED_RULES, attention_rules, feed_forward_rules
from vit_jax.layers import Blocks, Dense, LayerNorm, sow_block
from vit_jax.layers.check import at_least
from vit_jax.layers.shapes import Tokens

Norm = functools.partial(LayerNorm, use_bias=False)


class Transformer(Blocks):
    """`depth` blocks: x becomes norm(residual_scale x + f(x)), and after the first attention x + f(x)."""

    residual_scale: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        drop_paths = self.drop_paths(train)
        for i in range(2 * self.depth):
            branch = self.feed_forward(name=f"ff_{i}") if i % 2 else self.attention(name=f"attn_{i}")
            out = drop_paths[i // 2](branch(x, train=train))
            x = x + out if i == 0 else Norm(name=f"post_norm_{i - 1}")(self.residual_scale * x + out)
            if i % 2:
                sow_block(self, x)
        return x


class ViTWithKeelPostLN(PlainViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may be smaller than `image_size`; it then gets the first positions. With `pool="mean"`
    there is no class token.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks, at least 2.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all
            tokens.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        keel_residual_scale: factor of every residual; by default 2 * `depth`.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `pool` is neither "cls" nor
            "mean", or `depth` is below 2.
    """

    keel_residual_scale: float | None = None

    def __post_init__(self):
        at_least(self, depth=2)
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        scale = 2 * self.depth if self.keel_residual_scale is None else self.keel_residual_scale
        attention = functools.partial(self.make_attention(), norm=Norm)
        feed_forward = functools.partial(self.make_feed_forward(), norm=Norm)
        return Transformer(self.depth, attention, feed_forward, float(scale), drop_path=self.drop_path)

    def make_tokens(self, patches: int) -> tuple[Array, Array]:
        init, classes = nn.initializers.normal(0.02), int(self.pool == "cls")
        pos_embedding = self.param("pos_embedding", init, (patches + classes, self.dim))
        return self.param("cls_token", init, (1, self.dim)) if classes else pos_embedding[:0], pos_embedding

    def make_head(self) -> nn.Module:
        return Dense(self.num_classes)

    torch_rules = (
        *PATCH_EMBED_RULES,
        *attention_rules(r"attn_(\d+)", r"layers.\1"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.net"),
        (r"post_norm_(\d+)", r"post_norms.\1"),
    )

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores an empty class token if the mean is pooled."""
        return {"cls_token": np.zeros((0, self.dim), np.float32)} if self.pool == "mean" else {}


PRESETS = {"tiny": TINY, "s16": vit_sizes(384), "b16": vit_sizes(768)}
