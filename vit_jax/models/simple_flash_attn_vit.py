"""SimpleViT with flash attention's economy: attention maps are never kept for the gradient.

Source: Dao et al. 2022, arXiv:2205.14135. Upstream: vit_pytorch/simple_flash_attn_vit.py.
Differs from upstream: `use_flash=False` works; `use_flash` decides what is kept for the gradient, not which kernel
runs; `num_classes=0` gives tokens.
Differs from the paper: maps are computed again for the gradient, as there, but whole (paper: in tiles).
Axes: b batch, n patches, d dim.
"""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn

from vit_jax.frames.rules import sequential_rules
from vit_jax.frames.simple_vit import BaseSimpleViT, BiasFreeAttention
from vit_jax.layers import Blocks, NormHead
from vit_jax.layers.shapes import Tokens
from vit_jax.models import simple_vit


class FlashAttention(BiasFreeAttention):
    """Attention that keeps products with kernels for the gradient, and so not those of queries and keys."""

    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return nn.remat(BiasFreeAttention.__call__, policy=policy)(self, x)


class SimpleFlashAttentionViT(BaseSimpleViT):
    """`SimpleViT` with the last norm after the mean; `use_flash` saves memory in training and changes no number."""

    use_flash: bool = True

    def make_attention(self) -> Callable[..., nn.Module]:
        attention = FlashAttention if self.use_flash else BiasFreeAttention
        return functools.partial(attention, self.heads, self.dim_head)

    def make_transformer(self) -> nn.Module:
        return Blocks(self.depth, self.make_attention(), self.make_feed_forward())

    def make_head(self) -> nn.Module:
        return NormHead(self.num_classes)

    torch_rules = (*BaseSimpleViT.torch_rules, *sequential_rules("linear_head", "linear_head", norm=0, fc=1))


PRESETS = simple_vit.PRESETS
