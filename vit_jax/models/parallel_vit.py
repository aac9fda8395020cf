"""Parallel ViT: every block sums several attentions, then several feed-forwards, that read the same tokens.

Derives from the frame `PlainViT` and overrides the transformer and the patch projection, which has no norms.

Source: Touvron et al. 2022, arXiv:2203.09795. Upstream: vit_pytorch/parallel_vit.py.
Differs from upstream: `num_classes=0` gives tokens; tokens and positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: no bias in query, key and value, and no LayerScale.
Axes: b batch, n tokens, d dim, k classes.
"""

from flax import linen as nn

from vit_jax.frames import PlainViT
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import HEAD_RULES, PATCH_PROJECTION_RULES, attention_rules, feed_forward_rules
from vit_jax.layers import Blocks, PatchProjection, sow_block
from vit_jax.layers.check import at_least, pair
from vit_jax.layers.shapes import Tokens


class Transformer(Blocks):
    """`depth` blocks: a sum of `branches` attentions, then a sum of as many feed-forwards, each with a residual."""

    branches: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        for i, drop_path in enumerate(self.drop_paths(train)):
            x = x + sum(drop_path(self.attention(name=f"attn_{i}_{j}")(x, train=train)) for j in range(self.branches))
            x = x + sum(drop_path(self.feed_forward(name=f"ff_{i}_{j}")(x, train=train)) for j in range(self.branches))
            sow_block(self, x)
        return x


class ParallelViT(PlainViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may be smaller than `image_size`; it then gets the first positions.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all
            tokens.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        num_parallel_branches: attentions, and feed-forwards, in each block.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `pool` is neither "cls" nor
            "mean", or `num_parallel_branches` is below 1.
    """

    num_parallel_branches: int = 2

    def __post_init__(self):
        at_least(self, num_parallel_branches=1)
        super().__post_init__()

    def make_patch_embedding(self) -> nn.Module:
        return PatchProjection(pair("patch_size", self.patch_size), self.dim)

    def make_transformer(self) -> nn.Module:
        parts = self.make_attention(), self.make_feed_forward()
        return Transformer(self.depth, *parts, self.num_parallel_branches, drop_path=self.drop_path)

    torch_rules = (
        *PATCH_PROJECTION_RULES,
        *attention_rules(r"attn_(\d+)_(\d+)", r"layers.\1.0.fns.\2"),
        *feed_forward_rules(r"ff_(\d+)_(\d+)", r"layers.\1.1.fns.\2.net"),
        *HEAD_RULES,
    )


PRESETS = {"tiny": TINY | dict(depth=2), "s18x2": vit_sizes(384, depth=18), "b18x2": vit_sizes(768, depth=18)}
