"""SimpleViT with value residuals (ResFormer): the values of every layer are mixed with those of the first one.

Derives from the frame `BaseSimpleViT` and overrides the attention and the transformer.

Source: Zhou et al. 2024, arXiv:2410.17897. Upstream: vit_pytorch/simple_vit_with_value_residual.py.
Differs from upstream: `num_classes=0` gives tokens.
Differs from the paper: a linear map and a sigmoid compute the mix for each token and head (paper: two numbers for
each layer, learned or fixed).
Axes: b batch, n patches, d dim, h heads, i query, j key.
"""

import functools

from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.frames.simple_vit import BaseSimpleViT, BiasFreeAttention
from vit_jax.layers import Blocks, Dense, LayerNorm, ToHeads, attend, sow_block
from vit_jax.layers.shapes import Tokens
from vit_jax.models import simple_vit

Values = Float[Array, "b h n e"]


class Attention(BiasFreeAttention):
    """Self-attention without bias; its values are mixed with `first_values`, if given.

    Returns the output and the values.
    """

    @nn.compact
    def __call__(self, x: Tokens, first_values: Values | None, *, train: bool = False) -> tuple[Tokens, Values]:
        x = LayerNorm(name="norm")(x)
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(x)
        if first_values is not None:
            mix = rearrange(nn.sigmoid(Dense(self.heads, name="to_residual_mix")(x)), "b n h -> b h n 1")
            v = mix * v + (1 - mix) * first_values
        return Dense(x.shape[-1], use_bias=False, name="to_out")(attend(self, q, k, v)), v


class Transformer(Blocks):
    """`Blocks` that pass the values of the first block to all others, and a last norm."""

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        first_values = None
        for i, drop_path in enumerate(self.drop_paths(train)):
            attended, values = self.attention(name=f"attn_{i}")(x, first_values, train=train)
            first_values = values if i == 0 else first_values
            x = x + drop_path(attended)
            x = x + drop_path(self.feed_forward(name=f"ff_{i}")(x, train=train))
            sow_block(self, x)
        return LayerNorm(name="norm")(x)


class SimpleViTWithValueResidual(BaseSimpleViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the size of each image, which may be any that `patch_size` divides.

    Args:
        image_size: pixels, or (height, width); only checked against `patch_size`.
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token, a multiple of 4.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `dim` is not a multiple of 4
            above 4.
    """

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(Attention, self.heads, self.dim_head)
        return Transformer(self.depth, attention, self.make_feed_forward(), drop_path=self.drop_path)

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"attn_(\d+)/to_residual_mix", r"layers.\1.0.to_residual_mix.0"),
        (r"attn_(\d+)", r"layers.\1.0"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1", fc2=3),
    )


PRESETS = simple_vit.PRESETS
