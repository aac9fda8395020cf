"""ViTND: the plain ViT for arrays with any number of axes, optionally causal along some of them.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929, for two axes. Upstream: vit_pytorch/vit_nd.py.
Differs from upstream: any number of axes (upstream: at most 7); `num_classes=0` gives tokens; the patches of
`return_nd_patches` are channels-last; tokens and positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: a norm after the patch projection, no bias in query, key and value.
Axes: b batch, n tokens, d dim, h heads, f features of a head, i query, j key, k classes, grid the axes of patches.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax.frames.arguments import check_arguments
from vit_jax.frames.rules import TRANSFORMER_RULES, sequential_rules
from vit_jax.layers import Dense, FeedForward, LayerNorm, NormedBlocks, ToHeads, add_positions, attend, prepend
from vit_jax.layers.array_patches import ArrayPatchEmbed, array_grid, grid_positions, per_axis
from vit_jax.layers.causal import causal_axes, causal_mask
from vit_jax.layers.check import at_least, check_floating
from vit_jax.layers.shapes import Output, Tokens

Arrays, Grid = Float[Array, "b *shape c"], tuple[int, ...]


class Attention(nn.Module):
    """Self-attention where `mask` is True; dropout acts on the output, not on the attention map."""

    heads: int
    dim_head: int
    dropout: float

    def queries_keys_values(self, x: Tokens) -> Sequence[Float[Array, "b h n f"]]:
        """Queries, keys and values; variants take positions as further arguments."""
        return ToHeads(3, self.heads, self.dim_head, name="to_qkv")(x)

    @nn.compact
    def __call__(self, x: Tokens, mask: Bool[Array, "1 1 i j"] | None, *positions, train: bool = False) -> Tokens:
        q, k, v = self.queries_keys_values(LayerNorm(name="norm")(x), *positions)
        out = attend(self, q, k, v, scale=self.dim_head**-0.5, mask=mask)
        if self.heads == 1 and self.dim_head == x.shape[-1]:
            return out
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)


class ViTND(nn.Module):
    """Classifier: array (b, *input_shape, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    The class token attends to all tokens, and all tokens to it, also with `causal_dims`.

    Args:
        ndim: number of axes, without batch and channels.
        input_shape: sides of an array, one number for each axis, or one for all.
        patch_size: sides of a patch, one number for each axis, or one for all.
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all
            tokens.
        channels: channels of an array.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        causal_dims: axis or axes along which no patch attends to later ones.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `input_shape`, an input has another shape,
            `causal_dims` has an unknown axis, or `pool` is neither "cls" nor "mean".
    """

    ndim: int
    input_shape: int | Sequence[int]
    patch_size: int | Sequence[int]
    num_classes: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    pool: str = "cls"
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    causal_dims: int | Sequence[int] | None = None
    drop_path: float = 0.0

    def __post_init__(self):
        at_least(self, ndim=1)
        array_grid("input_shape", *self.shape_and_patch())
        causal_axes(self.causal_dims, self.ndim)
        check_arguments(self)
        super().__post_init__()

    def shape_and_patch(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """`input_shape` and `patch_size` as one number for each axis."""
        return per_axis("input_shape", self.input_shape, self.ndim), per_axis("patch_size", self.patch_size, self.ndim)

    def make_attention(self) -> Callable[..., nn.Module]:
        """A factory of a block's attention module, called with the name."""
        return functools.partial(Attention, self.heads, self.dim_head, self.dropout)

    def embed_patches(self, x: Arrays) -> tuple[Tokens, Grid]:
        """Tokens of the patches, without positions, and the shape of their grid."""
        shape, patch = self.shape_and_patch()
        if x.ndim != self.ndim + 2 or x.shape[-1] != self.channels:
            sides = ", ".join(map(str, shape))
            raise ValueError(f"input of shape {x.shape}: expected (batch, {sides}, channels={self.channels})")
        check_floating("input", x)
        grid = array_grid("input_shape", x.shape[1:-1], patch)
        return ArrayPatchEmbed(patch, self.dim, name="to_patch_embedding")(x), grid

    def transform(self, x: Tokens, grid: Grid, *positions, train: bool) -> Tokens:
        """Apply the transformer; tokens before the patches of `grid` are not masked."""
        mask = None
        if (axes := causal_axes(self.causal_dims, self.ndim)) is not None:
            free = x.shape[1] - math.prod(grid)
            mask = np.pad(causal_mask(grid_positions(grid), axes), ((free, 0), (free, 0)), constant_values=True)
            mask = jnp.asarray(mask[None, None])
        x = nn.Dropout(self.emb_dropout)(x, deterministic=not train)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, self.dropout)
        blocks = NormedBlocks(
            self.depth, self.make_attention(), feed_forward, drop_path=self.drop_path, name="transformer"
        )
        return blocks(x, mask, *positions, train=train)

    @nn.compact
    def __call__(
        self, x: Arrays, *, return_nd_patches: bool = False, train: bool = False
    ) -> Output | tuple[Float[Array, "b d"], Float[Array, "b *grid d"]]:
        """Apply the model; `return_nd_patches` returns the class token (b, d) and the patches (b, *grid, d) instead."""
        shape, patch = self.shape_and_patch()
        init, count = nn.initializers.normal(0.02), math.prod(array_grid("input_shape", shape, patch))
        given = x.shape
        x, grid = self.embed_patches(x)
        if given[1:-1] != shape:
            raise ValueError(f"input of shape {given}: expected input_shape={shape} between batch and channels")
        x = prepend(self.param("cls_token", init, (1, 1, self.dim)), x)
        x = add_positions(x, self.param("pos_embedding", init, (1, count + 1, self.dim)))
        x = self.transform(x, grid, train=train)
        pooled = x[:, 1:].mean(axis=1) if self.pool == "mean" else x[:, 0]
        logits = Dense(self.num_classes, name="mlp_head")(pooled) if self.num_classes else x
        return (x[:, 0], x[:, 1:].reshape(x.shape[0], *grid, self.dim)) if return_nd_patches else logits

    torch_rules = (
        *sequential_rules("to_patch_embedding", "to_patch_embedding", proj=1, norm=2),
        *TRANSFORMER_RULES,
    )


_BLOCKS = dict(dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128)
_UPSTREAM = dict(dim=512, depth=6, heads=8, mlp_dim=2048)
PRESETS = {
    "tiny": dict(ndim=3, input_shape=(4, 16, 16), patch_size=(2, 4, 4), **_BLOCKS),
    "upstream": dict(ndim=4, input_shape=(8, 16, 32, 64), patch_size=(2, 4, 4, 8), causal_dims=(0,), **_UPSTREAM),
}
