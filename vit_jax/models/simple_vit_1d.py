"""SimpleViT for series: patches of consecutive steps, with sine-cosine positions.

Derives from the frame `BaseSimpleViT` with `SeriesInput`, and overrides the positions.

Source: Beyer et al. 2022, arXiv:2205.01580, for images. Upstream: vit_pytorch/simple_vit_1d.py.
Differs from upstream: `dim` may be odd, which leaves its last feature without a position; `num_classes=0` gives tokens.
Differs from the paper: as `simple_vit` does.
Axes: b batch, n steps of the series or tokens, c channels, d dim, k classes.
"""

import numpy as np

from vit_jax.frames.inputs import SeriesInput
from vit_jax.frames.presets import TINY_SERIES
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers.positions import sincos_grid


class SimpleViT1D(SeriesInput, BaseSimpleViT):
    """Classifier: series (b, n, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the length of each series, which may be any that `patch_size`
    divides.

    Args:
        patch_size: steps of a patch.
        num_classes: number of classes; 0 for tokens.
        dim: width of a token, at least 4.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of a step.
        dim_head: width of a head.
        seq_len: steps of a series; only checked against `patch_size`.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `seq_len`, or `dim` is below 4.
    """

    def positions(self, *grid: int) -> np.ndarray:
        return sincos_grid(grid, self.dim)


PRESETS = {"tiny": TINY_SERIES}
