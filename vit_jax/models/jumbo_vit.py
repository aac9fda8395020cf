"""JumboViT: a class token several times as wide as a patch; it attends in pieces and has its own feed-forward.

Derives from the frame `BaseSimpleViT` and overrides the transformer and the head, which reads the wide class
token.

Source: Fuller et al. 2025, arXiv:2502.15021. Upstream: vit_pytorch/jumbo_vit.py.
Differs from upstream: with `multiply_widths=False`, `mlp_dim` means the same as in every other model; `num_classes=0`
gives tokens; the jumbo token has an initial std of 0.02 as the authors' does (upstream: 0).
Differs from the paper: several jumbo tokens are possible; one norm for them in all layers; the head reads the mean of
their pieces (paper: the concatenated pieces, and the mean of the patches); positions are not learned; no biases in
attention.
Axes: b batch, n tokens (pieces first), d dim, j jumbo tokens, p pieces of each, e extra tokens, k classes.
"""

import functools

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers import Blocks, FeedForward, LayerNorm, prepend, sow_block
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.shapes import ExtraTokens, Images, Patches, Tokens


class Transformer(Blocks):
    """Blocks without a last norm: joint attention, then separate feed-forwards for jumbo tokens and patches.

    The first tokens are the `pieces` of each of the `jumbos`. All blocks share one feed-forward for
    the jumbo tokens.
    """

    jumbo_mlp_dim: int
    jumbos: int
    pieces: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        jumbo_ff = FeedForward(self.jumbo_mlp_dim, name="jumbo_ff")
        for i, drop_path in enumerate(self.drop_paths(train)):
            x = x + drop_path(self.attention(name=f"attn_{i}")(x))
            pieces, patches = jnp.split(x, [self.jumbos * self.pieces], axis=1)
            jumbo = rearrange(pieces, "b (j p) d -> b j (p d)", p=self.pieces)
            pieces = rearrange(jumbo + drop_path(jumbo_ff(jumbo)), "b j (p d) -> b (j p) d", p=self.pieces)
            patches = patches + drop_path(self.feed_forward(name=f"ff_{i}")(patches))
            x = jnp.concatenate([pieces, patches], axis=1)
            sow_block(self, x)
        return x


class JumboViT(BaseSimpleViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    The pieces of the jumbo tokens come first. Positions are computed from the size of each image,
    which may be any that `patch_size` divides.

    Args:
        image_size: pixels, or (height, width); only checked against `patch_size`.
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token, a multiple of 4.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward of the patches; with `multiply_widths` as a
            multiple of `dim`.
        channels: channels of an image.
        dim_head: width of a head.
        num_jumbo_cls: number of jumbo tokens.
        jumbo_cls_k: pieces of a jumbo token, each `dim` wide.
        jumbo_ff_mult: hidden width of the feed-forward of the jumbo tokens, as a multiple of their
            width; with `multiply_widths` of its square.
        multiply_widths: multiply hidden widths once more, as upstream does; False for the paper's.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `dim` is not a multiple of 4
            above 4.
    """

    num_jumbo_cls: int = 1
    jumbo_cls_k: int = 6
    jumbo_ff_mult: int | float = 2
    multiply_widths: bool = True

    def __post_init__(self):
        at_least(self, num_jumbo_cls=1, jumbo_cls_k=1)
        super().__post_init__()
        left = self.jumbo_ff_mult * self.jumbo_cls_k * self.dim >= 1
        expect(self, "jumbo_ff_mult", left, "more than 0, for at least one hidden feature")

    def make_transformer(self) -> nn.Module:
        jumbo_dim = self.jumbo_cls_k * self.dim
        factor, jumbo_factor = (self.dim, jumbo_dim) if self.multiply_widths else (1, 1)
        blocks = (self.depth, self.make_attention(), functools.partial(FeedForward, factor * self.mlp_dim))
        jumbo_mlp_dim = jumbo_factor * int(jumbo_dim * self.jumbo_ff_mult)
        return Transformer(*blocks, jumbo_mlp_dim, self.num_jumbo_cls, self.jumbo_cls_k, drop_path=self.drop_path)

    def setup(self):
        super().setup()
        shape = (self.num_jumbo_cls, self.jumbo_cls_k * self.dim)
        self.jumbo_cls_token = self.param("jumbo_cls_token", nn.initializers.normal(0.02), shape)
        if self.num_classes:
            self.norm = LayerNorm()

    def embed(
        self,
        images: Images,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens before the transformer: the pieces of the jumbo tokens, the patches, the extra tokens."""
        x = super().embed(images, extra_tokens, patches=patches, train=train)
        return prepend(self.jumbo_cls_token.reshape(-1, self.dim), x)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`."""
        return self.linear_head(self.norm(tokens[:, : self.num_jumbo_cls * self.jumbo_cls_k].mean(axis=1)))

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"transformer/attn_(\d+)", r"layers.\1.0"),
        *feed_forward_rules(r"transformer/ff_(\d+)", r"layers.\1.1", fc2=3),
        *feed_forward_rules("transformer/jumbo_ff", "jumbo_ff.1", fc2=3),
    )


def _paper(dim, heads, pieces=6):
    jumbo = dict(jumbo_cls_k=pieces, jumbo_ff_mult=4, multiply_widths=False)
    return vit_sizes(dim, heads=heads, dim_head=dim // heads, **jumbo)


PRESETS = {
    "tiny": TINY | dict(jumbo_cls_k=3, jumbo_ff_mult=2, multiply_widths=False),
    "pico16": _paper(96, 3),
    "nano16": _paper(128, 4),
    "ti16": _paper(192, 3),
    "s16": _paper(384, 6),
    "b16": _paper(768, 12, pieces=3),
}
