"""Parallel ViT: half as deep and twice as wide, as every layer sums branches that read the same tokens.

Source: Touvron et al. 2022, arXiv:2203.09795. Upstream: vit_pytorch/parallel_vit.py.
Differs from upstream: `num_classes=0` gives tokens; tokens and positions start at a deviation of 0.02 (upstream: 1).
Differs from the paper: no bias in query, key and value, and no LayerScale.
Axes: b batch, n tokens, d dim, k classes.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Attention, FeedForward, PatchProjection, PlainViT
from vit_jax.layers.check import pair
from vit_jax.layers.rules import HEAD_RULES, PATCH_PROJECTION_RULES, feed_forward_rules


class Transformer(nn.Module):
    """`depth` times: `branches` attentions summed, then as many feed-forwards, each sum with its residual."""

    depth: int
    branches: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        attention = lambda name: Attention(self.heads, self.dim_head, self.dropout, name=name)
        feed_forward = lambda name: FeedForward(self.mlp_dim, self.dropout, name=name)
        for i in range(self.depth):
            x = x + sum(attention(f"attn_{i}_{j}")(x, train=train) for j in range(self.branches))
            x = x + sum(feed_forward(f"ff_{i}_{j}")(x, train=train) for j in range(self.branches))
        return x


class ParallelViT(PlainViT):
    """The plain ViT with `num_parallel_branches` in every layer.

    Raises ValueError when there is none.
    """

    num_parallel_branches: int = 2

    def __post_init__(self):
        if self.num_parallel_branches < 1:
            raise ValueError(f"num_parallel_branches={self.num_parallel_branches!r}: expected at least 1")
        super().__post_init__()

    def make_patch_embedding(self) -> nn.Module:
        return PatchProjection(pair("patch_size", self.patch_size), self.dim)

    def make_transformer(self) -> nn.Module:
        branches = self.num_parallel_branches
        return Transformer(self.depth, branches, self.heads, self.dim_head, self.mlp_dim, self.dropout)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=2, heads=4, dim_head=16, mlp_dim=128),
    "s18x2": dict(image_size=224, patch_size=16, dim=384, depth=18, heads=6, mlp_dim=1536),
    "b18x2": dict(image_size=224, patch_size=16, dim=768, depth=18, heads=12, mlp_dim=3072),
}

TORCH_RULES = (
    *PATCH_PROJECTION_RULES,
    (r"attn_(\d+)_(\d+)/to_out", r"layers.\1.0.fns.\2.to_out.0"),
    (r"attn_(\d+)_(\d+)", r"layers.\1.0.fns.\2"),
    *feed_forward_rules(r"ff_(\d+)_(\d+)", r"layers.\1.1.fns.\2.net"),
    *HEAD_RULES,
)
