"""SimpleViT of a video, with flash attention's economy: attention maps are never kept for the gradient.

Source: Dao et al. 2022, arXiv:2205.14135. Upstream: vit_pytorch/simple_flash_attn_vit_3d.py.
Differs from upstream: `use_flash_attn=False` works; `use_flash_attn` decides what is kept for the gradient, not which
kernel runs; `num_classes=0` gives tokens.
Differs from the paper: maps are computed again for the gradient, as there, but whole (paper: in tiles).
Axes: b batch, f frames, n tokens, c channels, d dim, k classes.
"""

import functools
from collections.abc import Callable

from flax import linen as nn

from vit_jax.frames.simple_vit import BiasFreeAttention
from vit_jax.layers import Blocks
from vit_jax.models import simple_vit_3d
from vit_jax.models.simple_flash_attn_vit import FlashAttention


class SimpleFlashAttentionViT3D(simple_vit_3d.SimpleViT3D):
    """`SimpleViT3D` without the last norm; `use_flash_attn` saves memory in training and changes no number."""

    use_flash_attn: bool = True

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(
            FlashAttention if self.use_flash_attn else BiasFreeAttention, self.heads, self.dim_head
        )

    def make_transformer(self) -> nn.Module:
        return Blocks(self.depth, self.make_attention(), self.make_feed_forward())


PRESETS = simple_vit_3d.PRESETS
