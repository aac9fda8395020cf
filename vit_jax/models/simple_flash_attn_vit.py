"""SimpleViT with memory-efficient attention: attention maps are recomputed for the gradient instead of stored.

Derives from the frame `BaseSimpleViT` and overrides the attention, which is rematerialised, and the head,
which has the last norm.

Source: Dao et al. 2022, arXiv:2205.14135. Upstream: vit_pytorch/simple_flash_attn_vit.py.
Differs from upstream: `use_flash=False` works; `use_flash` selects what is stored for the gradient, not the kernel;
`num_classes=0` gives tokens.
Differs from the paper: maps are recomputed for the gradient as a whole (paper: in tiles).
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
    """Attention that stores the outputs of its linear maps for the gradient, but no attention map."""

    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return nn.remat(BiasFreeAttention.__call__, policy=policy)(self, x)


class SimpleFlashAttentionViT(BaseSimpleViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the size of each image, which may be any that `patch_size` divides.
    The last norm comes after the mean.

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
        use_flash: save memory in training; outputs do not change.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `dim` is not a multiple of 4
            above 4.
    """

    use_flash: bool = True

    def make_attention(self) -> Callable[..., nn.Module]:
        attention = FlashAttention if self.use_flash else BiasFreeAttention
        return functools.partial(attention, self.heads, self.dim_head)

    def make_transformer(self) -> nn.Module:
        return Blocks(self.depth, self.make_attention(), self.make_feed_forward(), drop_path=self.drop_path)

    def make_head(self) -> nn.Module:
        return NormHead(self.num_classes)

    torch_rules = (*BaseSimpleViT.torch_rules, *sequential_rules("linear_head", "linear_head", norm=0, fc=1))


PRESETS = simple_vit.PRESETS
