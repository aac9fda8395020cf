"""ViTND with rotary positions: each pair of features of queries and keys rotates along its own direction.

Derives from `ViTND` (vit_jax/models/vit_nd.py) and overrides the attention; there is no class token.

Source: Jerry Xiong, "Golden Gate RoPE", jerryxio.ng/posts/nd-rope. Upstream: vit_pytorch/vit_nd_rotary.py.
Differs from upstream: any number of axes (upstream: at most 7); `num_classes=0` gives the grid of `return_embed`; a
causal mask is computed for the grid of the input, as positions are (upstream: for `input_shape`, whatever the size of
the input); no `muon_parameters`, which is for an optimizer.
Differs from the source: there is no form with a class token.
Axes: b batch, n patches, d dim, h heads, f features of a head, r half of them, k classes, grid the axes of patches.
"""

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, golden_gate
from vit_jax.layers.check import expect
from vit_jax.layers.shapes import Output, Tokens
from vit_jax.models import vit_nd

Heads = Float[Array, "b h n f"]


def turn(x: Heads, sin_cos: Float[Array, "2 h n r"]) -> Heads:
    """Rotate each feature of the first half with its partner in the second; in float32, as upstream does."""
    (sin, cos), (a, b) = sin_cos[:, None], jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


class Attention(vit_nd.Attention):
    """Attention in which `encode` adds positions to queries and keys."""

    encode: Callable[..., Array]

    def queries_keys_values(self, x: Tokens, of_queries: Array, of_keys: Array) -> Sequence[Heads]:
        width = self.heads * self.dim_head
        q, k = rearrange(
            Dense(2 * width, use_bias=False, name="to_qk")(x), "b n (qk h f) -> qk b h n f", qk=2, h=self.heads
        )
        v = rearrange(Dense(width, use_bias=False, name="to_v")(x), "b n (h f) -> b h n f", h=self.heads)
        return self.encode(q, of_queries), self.encode(k, of_keys), v


class EncodedViTND(vit_nd.ViTND):
    """Base of the ViTNDs with positions in the attention; the head reads the mean of all patches.

    A variant overrides `make_attention`, and `positions`, which returns those of queries and of
    keys.
    """

    pool: ClassVar[str] = "mean"

    @nn.compact
    def __call__(self, x: vit_nd.Arrays, *, return_embed: bool = False, train: bool = False) -> Output:
        """Apply the model; with `return_embed`, or without classes, return tokens as a grid (b, *grid, d)."""
        x, grid = self.embed_patches(x)
        x = self.transform(x, grid, *self.positions(grid), train=train)
        embed = x.reshape(x.shape[0], *grid, self.dim)
        logits = Dense(self.num_classes, name="mlp_head")(x.mean(axis=1)) if self.num_classes else embed
        return embed if return_embed else logits


class ViTNDRotary(EncodedViTND):
    """Classifier: array (b, *shape, c) to logits (b, k); with `num_classes=0` to tokens (b, *grid, d).

    An array may have any size that patches fill. The head reads the mean of all patches.

    Args:
        ndim: number of axes, without batch and channels.
        input_shape: sides of an array, one number for each axis, or one for all; only checked
            against `patch_size`.
        patch_size: sides of a patch, one number for each axis, or one for all.
        num_classes: number of classes; 0 for tokens, as a grid.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an array.
        dim_head: width of a head; even.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        causal_dims: axis or axes along which no patch attends to later ones.
        rope_min_freq: smallest frequency, in radians per patch.
        rope_max_freq: largest frequency, in radians per patch.
        rope_p_zero_freqs: share of the frequencies that are zero.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `input_shape` or the sides of an array,
            `causal_dims` has an unknown axis, `dim_head` is odd, a frequency is not above 0, or
            `rope_p_zero_freqs` is not in [0, 1].
    """

    rope_min_freq: float = 1.0
    rope_max_freq: float = 10000.0
    rope_p_zero_freqs: float = 0.0

    def __post_init__(self):
        expect(self, "dim_head", self.dim_head % 2 == 0, "an even number of features, as they rotate in pairs")
        check_frequencies(self, "rope")
        super().__post_init__()

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, self.heads, self.dim_head, self.dropout, turn)

    def frequencies(self) -> np.ndarray:
        """Radians per patch along each axis, (h, r, axes)."""
        of_lengths = (self.rope_min_freq, self.rope_max_freq, self.rope_p_zero_freqs)
        return golden_gate.frequencies(self.heads, self.dim_head // 2, self.ndim, *of_lengths)

    def positions(self, grid: vit_nd.Grid) -> Sequence[Float[Array, "2 h n r"]]:
        sin_cos = jnp.asarray(golden_gate.sin_cos(golden_gate.angles(self.frequencies(), grid)))
        return sin_cos, sin_cos

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Frequencies, which upstream stores with the model and with every layer."""
        names = ["rotary_emb", *(f"transformer.layers.{i}.0.rotary_emb" for i in range(self.depth))]
        return {f"{name}.freqs": self.frequencies() for name in names}


def check_frequencies(model: nn.Module, prefix: str) -> None:
    """Check the frequencies of `model`, whose names begin with `prefix`.

    Raises:
        ValueError: if one is not above 0, or the share of zeros is not in [0, 1].
    """
    for name in (f"{prefix}_min_freq", f"{prefix}_max_freq"):
        expect(model, name, getattr(model, name) > 0, "a frequency above 0")
    expect(model, share := f"{prefix}_p_zero_freqs", 0 <= getattr(model, share) <= 1, "0 to 1")


_UPSTREAM = dict(ndim=5, input_shape=(4, 8, 16, 32, 64), patch_size=(2, 2, 4, 4, 8))
PRESETS = {"tiny": vit_nd.PRESETS["tiny"], "upstream": vit_nd.PRESETS["upstream"] | _UPSTREAM}
