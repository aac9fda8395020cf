"""SimpleViT with orthogonal residual updates: a block adds only the part of its output orthogonal to its input.

Derives from the frame `BaseSimpleViT` and overrides the residuals of the transformer.

Source: Oh et al. 2025, arXiv:2505.11881. Upstream: vit_pytorch/simple_vit_orthog_residual_update.py.
Differs from upstream: projections are computed in float32 whatever `double_precision` is, as accelerators lack
float64; `num_classes=0` gives tokens.
Differs from the paper: no epsilon is added to the input's squared length; `learned` gates are upstream's addition.
Axes: b batch, n patches, d dim.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from vit_jax.frames.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers import Dense, DropPath, NormedBlocks, l2_normalize
from vit_jax.layers.check import expect
from vit_jax.layers.shapes import Tokens
from vit_jax.models import simple_vit


class OrthogonalUpdate(nn.Module):
    """`x` plus the part of a block's output that is orthogonal to `x`.

    With `learned` both parts are added, each times a gate that a linear map of the output computes
    for each token.
    """

    learned: bool

    @nn.compact
    def __call__(self, x: Tokens, output: Tokens) -> Tokens:
        direction, wide = l2_normalize(x.astype(jnp.float32)), output.astype(jnp.float32)
        parallel = (wide * direction).sum(axis=-1, keepdims=True) * direction
        parallel, orthogonal = parallel.astype(x.dtype), (wide - parallel).astype(x.dtype)
        if not self.learned:
            return x + orthogonal
        gates = nn.sigmoid(Dense(2, name="to_modulation")(output))
        return x + parallel * gates[..., :1] + orthogonal * gates[..., 1:]


class Transformer(NormedBlocks):
    """`NormedBlocks` with orthogonal updates in place of residuals."""

    learned: bool = False

    def add(self, x: Tokens, out: Tokens, part: str, i: int, drop_path: DropPath) -> Tokens:
        return OrthogonalUpdate(self.learned, name=f"{part}_update_{i}")(x, drop_path(out))


class SimpleViTOrthogonalUpdate(BaseSimpleViT):
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
        orthog_residual_update_kwargs: a dict of "learned", to add both parts of a block's output
            times learned gates, and "double_precision", which is ignored.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `dim` is not a multiple of 4 above
            4, or `orthog_residual_update_kwargs` has another key.
    """

    orthog_residual_update_kwargs: Mapping[str, bool] = FrozenDict()

    def __post_init__(self):
        options = self.orthog_residual_update_kwargs
        known = isinstance(options, Mapping) and set(options) <= {"learned", "double_precision"}
        expect(self, "orthog_residual_update_kwargs", known, "a dict of 'learned' and 'double_precision'")
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        learned = self.orthog_residual_update_kwargs.get("learned", False)
        parts = self.make_attention(), self.make_feed_forward()
        return Transformer(self.depth, *parts, learned=learned, drop_path=self.drop_path)

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"attn_update_(\d+)", r"layers.\1.0"),
        (r"ff_update_(\d+)", r"layers.\1.1"),
        (r"attn_(\d+)", r"layers.\1.0.block"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.block.net", fc2=3),
    )


PRESETS = simple_vit.PRESETS
