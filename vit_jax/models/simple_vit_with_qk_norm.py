"""SimpleViT with normalised queries and keys: scores stay small, so that large models do not diverge.

Source: Dehghani et al. 2023 (ViT-22B), arXiv:2302.05442. Upstream: vit_pytorch/simple_vit_with_qk_norm.py.
Differs from upstream: `norm_head=False` gives a classifier (upstream's head is a norm, whatever `num_classes` is);
`num_classes=0` gives tokens.
Differs from the paper: queries and keys are scaled to length one, then by a learned vector for each head (paper: a
LayerNorm, and scores over the root of `dim_head`); attention and feed-forward take turns (paper: in parallel).
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
    """RMS norm of each head's vectors, with a scale `gamma` of its own; length one at the start."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h n d"]) -> Float[Array, "b h n d"]:
        heads, dim_head = x.shape[1], x.shape[-1]
        gamma = self.param("gamma", nn.initializers.constant(dim_head**-0.5), (heads, 1, dim_head))
        return l2_normalize(x) * dim_head**0.5 * gamma[None]


class Attention(nn.Module):
    """Self-attention by the angles between queries and keys, without any bias."""

    heads: int
    dim_head: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(LayerNorm(name="norm")(x))
        out = attend(self, HeadNorm(name="q_norm")(q), HeadNorm(name="k_norm")(k), v, scale=1.0)
        return Dense(x.shape[-1], use_bias=False, name="to_out")(out)


class SimpleViTWithQKNorm(BaseSimpleViT):
    """`SimpleViT` with normalised queries and keys, whose head gives normalised features (b, d).

    With `norm_head=False`, as in the presets, the head is linear and gives logits (b, k).
    """

    norm_head: bool = True

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, self.heads, self.dim_head)

    def make_head(self) -> nn.Module:
        return LayerNorm() if self.norm_head else super().make_head()


_22B = dict(image_size=224, patch_size=14, dim=6144, depth=48, heads=48, dim_head=128, mlp_dim=24576)
PRESETS = {"tiny": TINY | dict(norm_head=False), "22b": _22B | dict(norm_head=False)}
