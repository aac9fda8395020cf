"""SimpleViT of a video: patches of some frames and pixels, at sines and cosines of their place in space and time.

Source: Beyer et al. 2022, arXiv:2205.01580, for images. Upstream: vit_pytorch/simple_vit_3d.py.
Differs from upstream: `num_classes=0` gives tokens.
Differs from the paper: as `simple_vit` does; where 6 does not divide `dim`, the last features have no position.
Axes: b batch, f frames, n tokens, c channels, d dim, k classes.
"""

import numpy as np

from vit_jax.frames.inputs import VideoInput
from vit_jax.frames.presets import TINY_VIDEO
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers.positions import sincos_grid


class SimpleViT3D(VideoInput, BaseSimpleViT):
    """Classifier: video (b, f, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d), frame by frame.

    Positions are computed for the video at hand, so `frames` and `image_size` only say what it is meant for.
    Raises ValueError when `frame_patch_size` does not divide `frames`, or `image_patch_size` not `image_size`, or for a
    `dim` below 12.
    """

    def positions(self, *grid: int) -> np.ndarray:
        return sincos_grid(grid, self.dim)


PRESETS = {"tiny": TINY_VIDEO}
