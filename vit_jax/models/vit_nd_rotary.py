"""ViTND without learned positions: queries and keys turn, each feature along a direction of its own.

Source: Jerry Xiong, "Golden Gate RoPE", jerryxio.ng/posts/nd-rope. Upstream: vit_pytorch/vit_nd_rotary.py.
Differs from upstream: any number of axes (upstream: at most 7); `num_classes=0` gives the grid of `return_embed`; a
causal mask is of the input's grid, as positions are (upstream: of `input_shape`, also where the input is of another
size); no `muon_parameters`, which is for an optimizer.
Differs from the source: its form with a class token is not here.
Axes: b batch, n patches, d dim, h heads, f features of a head, r half of them, k classes, grid: those of the patches.
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
    """Turns each feature of the first half together with its partner of the second; in float32, as upstream does."""
    (sin, cos), (a, b) = sin_cos[:, None], jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


class Attention(vit_nd.Attention):
    """Attention whose queries and keys `encode` gives their places."""

    encode: Callable[..., Array]

    def queries_keys_values(self, x: Tokens, of_queries: Array, of_keys: Array) -> Sequence[Heads]:
        width = self.heads * self.dim_head
        q, k = rearrange(
            Dense(2 * width, use_bias=False, name="to_qk")(x), "b n (qk h f) -> qk b h n f", qk=2, h=self.heads
        )
        v = rearrange(Dense(width, use_bias=False, name="to_v")(x), "b n (h f) -> b h n f", h=self.heads)
        return self.encode(q, of_queries), self.encode(k, of_keys), v


class EncodedViTND(vit_nd.ViTND):
    """ViTND whose attention knows the places of patches, of any input that patches fill; their mean is pooled.

    A variant says how, in `make_attention`, and what of its `positions`: for queries and for keys.
    """

    pool: ClassVar[str] = "mean"

    @nn.compact
    def __call__(self, x: vit_nd.Arrays, *, return_embed: bool = False, train: bool = False) -> Output:
        """With `return_embed`, and where there are no classes, tokens as a grid, (b, *grid, d)."""
        x, grid = self.embed_patches(x)
        x = self.transform(x, grid, *self.positions(grid), train=train)
        embed = x.reshape(x.shape[0], *grid, self.dim)
        logits = Dense(self.num_classes, name="mlp_head")(x.mean(axis=1)) if self.num_classes else embed
        return embed if return_embed else logits


class ViTNDRotary(EncodedViTND):
    """Classifier: array (b, *shape, c) to logits (b, k); with `num_classes=0` to tokens (b, *grid, d).

    Frequencies rise from `rope_min_freq` to `rope_max_freq` radians a patch, but for a share `rope_p_zero_freqs`, which
    are zero. An input may have other sizes than `input_shape`.
    Raises ValueError when `patch_size` does not divide `input_shape` or an input, or `dim_head` is odd.
    """

    rope_min_freq: float = 1.0
    rope_max_freq: float = 10000.0
    rope_p_zero_freqs: float = 0.0

    def __post_init__(self):
        expect(self, "dim_head", self.dim_head % 2 == 0, "an even number of features, which turn in pairs")
        check_frequencies(self, "rope")
        super().__post_init__()

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, self.heads, self.dim_head, self.dropout, turn)

    def frequencies(self) -> np.ndarray:
        """Radians a patch along each axis, (h, r, axes)."""
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
    """Raises ValueError for frequencies that are not above 0, and for a share of zeros outside of 0 to 1."""
    for name in (f"{prefix}_min_freq", f"{prefix}_max_freq"):
        expect(model, name, getattr(model, name) > 0, "a frequency above 0")
    expect(model, share := f"{prefix}_p_zero_freqs", 0 <= getattr(model, share) <= 1, "0 to 1")


_UPSTREAM = dict(ndim=5, input_shape=(4, 8, 16, 32, 64), patch_size=(2, 2, 4, 4, 8))
PRESETS = {"tiny": vit_nd.PRESETS["tiny"], "upstream": vit_nd.PRESETS["upstream"] | _UPSTREAM}
