"""SimpleViT for video with memory-efficient attention: attention maps are recomputed instead of stored.

Derives from `SimpleViT3D` (vit_jax/models/simple_vit_3d.py) and overrides the attention, which is
rematerialised.

Source: Dao et al. 2022, arXiv:2205.14135. Upstream: vit_pytorch/simple_flash_attn_vit_3d.py.
Differs from upstream: `use_flash_attn=False` works; `use_flash_attn` selects what is stored for the gradient, not the
kernel; `num_classes=0` gives tokens.
Differs from the paper: maps are recomputed for the gradient as a whole (paper: in tiles).
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
    """Classifier: video (b, f, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d), frame by frame.

    Positions are computed from the size of each video, which may be any that patches fill. There is
    no last norm.

    Args:
        image_size: pixels, or (height, width); only checked against `image_patch_size`.
        num_classes: number of classes; 0 for tokens.
        dim: width of a token, at least 12.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of a frame.
        dim_head: width of a head.
        image_patch_size: pixels, or (height, width).
        frames: frames of a video; only checked against `frame_patch_size`.
        frame_patch_size: frames of a patch.
        use_flash_attn: save memory in training; outputs do not change.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `frame_patch_size` does not divide `frames`, `image_patch_size` does not
            divide `image_size`, or `dim` is below 12.
    """

    use_flash_attn: bool = True

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(
            FlashAttention if self.use_flash_attn else BiasFreeAttention, self.heads, self.dim_head
        )

    def make_transformer(self) -> nn.Module:
        return Blocks(self.depth, self.make_attention(), self.make_feed_forward(), drop_path=self.drop_path)


PRESETS = simple_vit_3d.PRESETS
