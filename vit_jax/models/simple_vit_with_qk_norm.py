"""SimpleViT with normalised queries and keys, which bounds the scores and keeps large models from diverging.

Derives from the frame `BaseSimpleViT` and overrides the attention and the head.

Source: Dehghani et al. 2023 (ViT-22B), arXiv:2302.05442. Upstream: vit_pytorch/simple_vit_with_qk_norm.py.
Differs from upstream: `norm_head=False` makes a classifier (upstream's head is a norm, whatever `num_classes` is);
`num_classes=0` gives tokens.
Differs from the paper: queries and keys are scaled to length one, then by a learned vector for each head (paper: a
LayerNorm, and scores divided by the root of `dim_head`); attention and feed-forward alternate (paper: in parallel).
Axes: b batch, n patches, d dim, h heads, i query, j key, k classes.
"""

import functools
from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.presets import TINY
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers import Dense, LayerNorm, ToHeads, attend, l2_normalize
from vit_jax.layers.shapes import Tokens


class HeadNorm(nn.Module):
    """RMS norm of the vectors of each head, with a learned scale for every head; initially they have length 1."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h n d"]) -> Float[Array, "b h n d"]:
        heads, dim_head = x.shape[1], x.shape[-1]
        gamma = self.param("gamma", nn.initializers.constant(dim_head**-0.5), (heads, 1, dim_head))
        return l2_normalize(x) * dim_head**0.5 * gamma[None]


class Attention(nn.Module):
    """Self-attention with normalised queries and keys, without bias."""

    heads: int
    dim_head: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(LayerNorm(name="norm")(x))
        out = attend(self, HeadNorm(name="q_norm")(q), HeadNorm(name="k_norm")(k), v, scale=1.0)
        return Dense(x.shape[-1], use_bias=False, name="to_out")(out)


class SimpleViTWithQKNorm(BaseSimpleViT):
    """Image (b, H, W, c) to features (b, d), or with `norm_head=False` to logits (b, k).

    With `num_classes=0` it returns tokens (b, n, d). Positions are computed from the size of each
    image, which may be any that `patch_size` divides.

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
        norm_head: the head is a norm, as in upstream, instead of a classifier.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `dim` is not a multiple of 4
            above 4.
    """

    norm_head: bool = True

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, self.heads, self.dim_head)

    def make_head(self) -> nn.Module:
        return LayerNorm() if self.norm_head else super().make_head()


_22B = dict(image_size=224, patch_size=14, dim=6144, depth=48, heads=48, dim_head=128, mlp_dim=24576)
PRESETS = {"tiny": TINY | dict(norm_head=False), "22b": _22B | dict(norm_head=False)}
