"""ViT of a series: patches of steps along one axis, read by a plain transformer.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929, for images. Upstream: vit_pytorch/vit_1d.py.
Differs from upstream: a series may be shorter than `seq_len`; `num_classes=0` gives tokens; tokens and positions start
at a deviation of 0.02 (upstream: 1).
Differs from the paper: as `vit` does; and its norm behind the transformer is only on the class token.
Axes: b batch, n steps of the series or tokens, c channels, d dim, k classes.
"""

from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array

from vit_jax.layers import PlainViT
from vit_jax.layers.inputs import SeriesInput
from vit_jax.layers.presets import TINY_SERIES
from vit_jax.layers.rules import HEAD_RULES, PATCH_EMBED_RULES, TRANSFORMER_RULES


class ViT1D(SeriesInput, PlainViT):
    """Classifier: series (b, n, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    A series may be shorter than `seq_len` steps; it then gets the first positions.
    Raises ValueError when `patch_size` does not divide `seq_len`.
    """

    pool: ClassVar[str] = "cls"

    def make_tokens(self, patches: int) -> tuple[Array, Array]:
        init = nn.initializers.normal(0.02)
        cls_token = self.param("cls_token", init, (self.dim,))
        return cls_token[None], self.param("pos_embedding", init, (1, patches + 1, self.dim))


PRESETS = {"tiny": TINY_SERIES}

TORCH_RULES = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES, *HEAD_RULES)
