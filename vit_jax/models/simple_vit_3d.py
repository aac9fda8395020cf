"""SimpleViT for video: patches of several frames, with sine-cosine positions in space and time.

Derives from the frame `BaseSimpleViT` with `VideoInput`, and overrides the positions.

Source: Beyer et al. 2022, arXiv:2205.01580, for images. Upstream: vit_pytorch/simple_vit_3d.py.
Differs from upstream: `num_classes=0` gives tokens.
Differs from the paper: as `simple_vit` does; if 6 does not divide `dim`, the last features have no position.
Axes: b batch, f frames, n tokens, c channels, d dim, k classes.
"""

import numpy as np

from vit_jax.frames.inputs import VideoInput
from vit_jax.frames.presets import TINY_VIDEO
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers.positions import sincos_grid


class SimpleViT3D(VideoInput, BaseSimpleViT):
    """Classifier: video (b, f, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d), frame by frame.

    Positions are computed from the size of each video, which may be any that patches fill.

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
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `frame_patch_size` does not divide `frames`, `image_patch_size` does not
            divide `image_size`, or `dim` is below 12.
    """

    def positions(self, *grid: int) -> np.ndarray:
        return sincos_grid(grid, self.dim)


PRESETS = {"tiny": TINY_VIDEO}
