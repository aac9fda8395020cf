"""SimpleViT with relative position biases: a sum of learned curves over distance, weighted by each query.

Derives from the frame `BaseSimpleViT` and overrides the attention.

Source: the Inkling model of Thinking Machines, as upstream names it.
Upstream: vit_pytorch/simple_vit_with_relative_proj_pos_bias.py.
Differs from upstream: rows and columns are those of the input image; `num_classes=0` gives tokens (b, n, d)
(upstream keeps a grid until they are pooled).
Axes: b batch, n patches, d dim, h heads, i query, j key, w rows and columns, m curves, r distances.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers import Dense, LayerNorm, ToHeads, attend
from vit_jax.layers.check import at_least, patch_grid
from vit_jax.layers.shapes import Images, Patches, Tokens
from vit_jax.models import simple_vit


class RelativeProjPosBias(nn.Module):
    """Bias of attention scores for tokens of a `grid`, by distance in rows and in columns.

    The bias is zero for patches that are `max_dist` or more apart along either axis.
    """

    heads: int
    num_distance_basis: int
    max_dist: int

    @nn.compact
    def __call__(self, x: Tokens, grid: tuple[int, int]) -> Float[Array, "b h n n"]:
        basis, span = self.num_distance_basis, 2 * self.max_dist - 1
        weights = Dense(self.heads * 2 * basis, name="to_distance_weights")(x)
        weights = rearrange(weights, "b n (w h m) -> w b h n m", w=2, h=self.heads)
        banks = self.param("distance_banks", nn.initializers.normal(0.02), (2, basis, span))

        coordinates = np.indices(grid).reshape(2, -1)
        distances = coordinates[:, :, None] - coordinates[:, None, :]  # (w, i, j)
        near = (np.abs(distances) < self.max_dist).all(axis=0)
        index = np.clip(distances + self.max_dist - 1, 0, span - 1)
        curves = jnp.stack([banks[w][:, index[w]] for w in (0, 1)])
        return jnp.where(near[None, None], jnp.einsum("wbhim,wmij->bhij", weights, curves), 0)


class Attention(nn.Module):
    """Self-attention of tokens of a `grid` with relative position biases; projections have no bias."""

    heads: int
    dim_head: int
    num_distance_basis: int
    max_dist: int

    @nn.compact
    def __call__(self, x: Tokens, grid: tuple[int, int], *, train: bool = False) -> Tokens:
        relative = RelativeProjPosBias(self.heads, self.num_distance_basis, self.max_dist, name="rel_pos_bias")
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(LayerNorm(name="norm")(x))
        return Dense(x.shape[-1], use_bias=False, name="to_out")(attend(self, q, k, v, bias=relative(x, grid)))


class RelativeBiasViT(BaseSimpleViT):
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
        num_distance_basis: learned curves over distance in each block and along each axis.
        max_dist: distance, in patches, from which on there is no bias.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `dim` is not a multiple of 4
            above 4.
    """

    num_distance_basis: int = 16
    max_dist: int = 512

    def __post_init__(self):
        at_least(self, num_distance_basis=1, max_dist=1)
        super().__post_init__()

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, self.heads, self.dim_head, self.num_distance_basis, self.max_dist)

    def encode(self, images: Images, *, patches: Patches | None = None, train: bool = False) -> Tokens:
        """Tokens after the transformer. Extra tokens would have no place in the grid."""
        x = self.embed(images, patches=patches)
        return self.transform(x, patch_grid(images.shape[1:3], self.patch_size), train=train)

    torch_rules = (("to_distance_weights", "to_distance_weights.0"), *BaseSimpleViT.torch_rules)


PRESETS = simple_vit.PRESETS  # upstream names no sizes
