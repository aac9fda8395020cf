"""SimpleViT of a series: patches of steps along one axis, at sines and cosines of their place.

Source: Beyer et al. 2022, arXiv:2205.01580, for images. Upstream: vit_pytorch/simple_vit_1d.py.
Differs from upstream: `dim` may be odd, and its last feature then has no position; `num_classes=0` gives tokens.
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

    Positions are computed for the series at hand, so `seq_len` only says what it is meant for.
    Raises ValueError when `patch_size` does not divide `seq_len` or `dim` is below 4.
    """

    def positions(self, *grid: int) -> np.ndarray:
        return sincos_grid(grid, self.dim)


PRESETS = {"tiny": TINY_SERIES}
