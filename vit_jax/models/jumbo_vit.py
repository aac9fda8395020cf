"""JumboViT: a class token several times as wide as a patch, which attends in pieces and has a feed-forward of its own.

Source: Fuller et al. 2025, arXiv:2502.15021. Upstream: vit_pytorch/jumbo_vit.py.
Differs from upstream: `multiply_widths=False` reads `mlp_dim` as in every other model; `num_classes=0` gives tokens;
the jumbo token starts at a deviation of 0.02 as the authors' does (upstream: 0).
Differs from the paper: several jumbo tokens are possible; one norm for them in all layers; the head reads the mean of
their pieces (paper: the pieces side by side, and the mean of the patches); positions are not learned; no biases in
attention.
Axes: b batch, n tokens (pieces first), d dim, j jumbo tokens, p pieces of each, e extra tokens, k classes.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import FeedForward, LayerNorm, prepend
from vit_jax.layers.check import at_least
from vit_jax.layers.rules import PATCH_EMBED_RULES
from vit_jax.models.simple_vit import Attention, SimpleViT


class Transformer(nn.Module):
    """`depth` blocks without a last norm: all tokens attend, then jumbo tokens and patches go separate ways.

    The first tokens are the `pieces` of each of the `jumbos`; all layers share the feed-forward of their whole.
    """

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    jumbo_mlp_dim: int
    jumbos: int
    pieces: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        jumbo_ff = FeedForward(self.jumbo_mlp_dim, name="jumbo_ff")
        for i in range(self.depth):
            x = x + Attention(self.heads, self.dim_head, name=f"attn_{i}")(x)
            pieces, patches = jnp.split(x, [self.jumbos * self.pieces], axis=1)
            jumbo = rearrange(pieces, "b (j p) d -> b j (p d)", p=self.pieces)
            pieces = rearrange(jumbo + jumbo_ff(jumbo), "b j (p d) -> b (j p) d", p=self.pieces)
            patches = patches + FeedForward(self.mlp_dim, name=f"ff_{i}")(patches)
            x = jnp.concatenate([pieces, patches], axis=1)
        return x


class JumboViT(SimpleViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d), the pieces first.

    `num_jumbo_cls` tokens are `jumbo_cls_k * dim` wide each. Upstream multiplies widths twice: the patches' hidden
    layer has `dim * mlp_dim` features, the jumbo tokens' `jumbo_ff_mult` times the square of their width. With
    `multiply_widths=False` they have `mlp_dim`, and `jumbo_ff_mult` times the jumbo tokens' width.
    """

    num_jumbo_cls: int = 1
    jumbo_cls_k: int = 6
    jumbo_ff_mult: int | float = 2
    multiply_widths: bool = True

    def __post_init__(self):
        at_least(self, num_jumbo_cls=1, jumbo_cls_k=1)
        super().__post_init__()
        if self.jumbo_ff_mult * self.jumbo_cls_k * self.dim < 1:
            raise ValueError(f"jumbo_ff_mult={self.jumbo_ff_mult}: expected more than 0, so that a feature is left")

    def make_transformer(self) -> nn.Module:
        jumbo_dim = self.jumbo_cls_k * self.dim
        mlp_dim, jumbo_mlp_dim = self.mlp_dim, int(jumbo_dim * self.jumbo_ff_mult)
        if self.multiply_widths:
            mlp_dim, jumbo_mlp_dim = self.dim * mlp_dim, jumbo_dim * jumbo_mlp_dim
        tokens = (self.num_jumbo_cls, self.jumbo_cls_k)
        return Transformer(self.depth, self.heads, self.dim_head, mlp_dim, jumbo_mlp_dim, *tokens)

    def setup(self):
        super().setup()
        shape = (self.num_jumbo_cls, self.jumbo_cls_k * self.dim)
        self.jumbo_cls_token = self.param("jumbo_cls_token", nn.initializers.normal(0.02), shape)
        if self.num_classes:
            self.norm = LayerNorm()

    def encode(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None, *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Tokens after the transformer: the pieces of the jumbo tokens, the patches, the extra tokens."""
        pieces = self.jumbo_cls_token.reshape(-1, self.dim)
        return self.transformer(prepend(pieces, self.embed(images, extra_tokens)))

    def head(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`."""
        pieces = tokens[:, : self.num_jumbo_cls * self.jumbo_cls_k]
        return self.linear_head(self.norm(pieces.mean(axis=1)))


def _paper(dim, heads, pieces=6):
    mlp = dict(mlp_dim=4 * dim, jumbo_cls_k=pieces, jumbo_ff_mult=4, multiply_widths=False)
    return dict(image_size=224, patch_size=16, dim=dim, depth=12, heads=heads, dim_head=dim // heads, **mlp)


_TINY = dict(dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128, jumbo_cls_k=3, jumbo_ff_mult=2, multiply_widths=False)

PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, **_TINY),
    "pico16": _paper(96, 3),
    "nano16": _paper(128, 4),
    "ti16": _paper(192, 3),
    "s16": _paper(384, 6),
    "b16": _paper(768, 12, pieces=3),
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"transformer/attn_(\d+)", r"layers.\1.0"),
    *(
        (f"transformer/{flax}/{part}", f"{torch}.{index}")
        for flax, torch in ((r"ff_(\d+)", r"layers.\1.1"), ("jumbo_ff", "jumbo_ff.1"))
        for part, index in (("norm", 0), ("fc1", 1), ("fc2", 3))
    ),
)
