"""LocalViT: a depthwise convolution over the grid of patches in every feed-forward.

Derives from the frame `PlainViT` and overrides the transformer: its feed-forwards are convolutional.

Source: Li et al. 2021, arXiv:2104.05707. Upstream: vit_pytorch/local_vit.py.
Differs from upstream: it works (upstream raises, as its LayerNorm gets channels-first maps); images and patches may be
non-square; `pool` may be "mean"; `num_classes=0` gives tokens; tokens and positions have an initial std
of 0.02 (upstream: 1).
Differs from the paper: a LayerNorm before the convolutions instead of BatchNorm between them, one more 1x1 convolution
after the depthwise one, and no squeeze-and-excitation.
Axes: b batch, n tokens, d dim, k classes.
"""

import functools

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from vit_jax.frames import PlainViT
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import HEAD_RULES, PATCH_EMBED_RULES, attention_rules, sequential_rules
from vit_jax.layers import (
    Attention,
    Blocks,
    Dense,
    DepthwiseConv,
    LayerNorm,
    PointwiseConv,
    ToHeads,
    attend,
    sow_block,
)
from vit_jax.layers.check import patch_grid
from vit_jax.layers.shapes import Images, Maps, Patches, Tokens


class ProjectedAttention(Attention):
    """`Attention` that always has an output projection."""

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(self.norm(name="norm")(x))
        out = Dense(x.shape[-1], name="to_out")(attend(self, q, k, v, dropout=self.dropout, train=train))
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class ConvFeedForward(nn.Module):
    """Inverted residual block over the grid of patches, without the residual."""

    hidden_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        hidden = nn.hard_swish(PointwiseConv(self.hidden_dim, name="expand")(LayerNorm(name="norm")(x)))
        hidden = DepthwiseConv(kernel=3, name="depthwise")(hidden)
        hidden = nn.hard_swish(PointwiseConv(self.hidden_dim, name="pointwise")(hidden))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        return nn.Dropout(self.dropout)(PointwiseConv(x.shape[-1], name="project")(hidden), deterministic=not train)


class Transformer(Blocks):
    """`Blocks` whose feed-forwards read the patches as a grid and leave the class token unchanged."""

    @nn.compact
    def __call__(self, x: Tokens, rows: int, *, train: bool = False) -> Tokens:
        for i, drop_path in enumerate(self.drop_paths(train)):
            x = x + drop_path(self.attention(name=f"attn_{i}")(x, train=train))
            grid = rearrange(x[:, 1:], "b (h w) d -> b h w d", h=rows)
            grid = grid + drop_path(self.feed_forward(name=f"ff_{i}")(grid, train=train))
            x = jnp.concatenate([x[:, :1], rearrange(grid, "b h w d -> b (h w) d")], axis=1)
            sow_block(self, x)
        return x


class LocalViT(PlainViT):
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
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `pool` is neither "cls" nor
            "mean".
    """

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(ProjectedAttention, self.heads, self.dim_head, self.dropout)
        feed_forward = functools.partial(ConvFeedForward, self.mlp_dim, self.dropout)
        return Transformer(self.depth, attention, feed_forward, drop_path=self.drop_path)

    def encode(self, images: Images, *, patches: Patches | None = None, train: bool = False) -> Tokens:
        """Tokens after the transformer. Extra tokens would have no place in the grid."""
        x = self.embed(images, patches=patches, train=train)
        return self.transform(x, patch_grid(images.shape[1:3], self.patch_size)[0], train=train)

    torch_rules = (
        *PATCH_EMBED_RULES,
        *attention_rules(r"attn_(\d+)", r"layers.\1.0.fn"),
        *sequential_rules(r"ff_(\d+)", r"layers.\1.1.fn.fn.net.3.net", depthwise=0, pointwise=1),
        *sequential_rules(r"ff_(\d+)", r"layers.\1.1.fn.fn.net", norm=0, expand=1, project=6),
        *HEAD_RULES,
    )


PRESETS = {"tiny": TINY, "t": vit_sizes(192, heads=4, dim_head=48), "s": vit_sizes(384)}
