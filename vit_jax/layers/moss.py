"""Multi-order self-similarity: motion features of a video, from the similarity of each vector to its neighbours.

Source: Kim, Kwon et al. 2026, arXiv:2604.20760. Upstream: `MOSS` in vit_pytorch/vivit_with_moss.py.
Axes: b batch, t time, h height, w width, d dim, s neighbours.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import at_least, check_floating, expect
from vit_jax.layers.dense import Dense
from vit_jax.layers.gelu import gelu
from vit_jax.layers.norm import ChannelNorm, l2_normalize

Features = Float[Array, "b t h w d"]
Similarity = Float[Array, "b t h w s"]


class SimilarityEncoder(nn.Module):
    """Similarities (b, t, h, w, s) to features (b, t, h, w, dim). The s neighbours are in order of their frames.

    Args:
        dim: features of the output.
        local_time: frames of the neighbours.
        hidden_dim: hidden width.
    """

    dim: int
    local_time: int
    hidden_dim: int

    @nn.compact
    def __call__(self, similarity: Similarity) -> Features:
        x = rearrange(similarity, "b t h w (l s) -> (b t l) h w s", l=self.local_time)
        x = Dense(self.hidden_dim, name="spatial_to_hidden")(x)
        for i in (1, 2):
            x = nn.Conv(self.hidden_dim, (3, 3), padding=1, name=f"conv_{i}")(x)
            x = gelu(ChannelNorm(use_bias=False, name=f"norm_{i}")(x))
        x = rearrange(x, "(b t l) h w d -> b t h w (l d)", t=similarity.shape[1], l=self.local_time)
        return Dense(self.dim, name="time_to_out")(x)


class MOSS(nn.Module):
    """Features (b, t, h, w, dim) to the same shape: the sum of a linear layer and of several orders.

    Each order encodes the similarity of every vector of the previous order to the vectors in a block around it. A
    causal module can process a video in pieces.

    Args:
        dim: features of a vector.
        local_time: frames of the block, odd.
        local_height: rows of the block, odd.
        local_width: columns of the block, odd.
        hidden_dim: hidden width of the encoders.
        orders: number of orders.
        causal: the block has the frame itself and earlier ones, none later.

    Raises:
        ValueError: if a side of the block is not odd.
    """

    dim: int
    local_time: int = 3
    local_height: int = 3
    local_width: int = 3
    hidden_dim: int = 64
    orders: int = 2
    causal: bool = False

    def __post_init__(self):
        at_least(self, dim=1)
        check_moss(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Features, *, cache: tuple | None = None, return_cache: bool = False, train: bool = False
    ) -> Features | tuple[Features, tuple]:
        """Apply the module to a video, or to the next piece of one.

        Args:
            x: features.
            cache: the cache that the call for the previous piece returned; None for the first piece.
            return_cache: also return the cache for the next piece.
            train: unused.

        Returns:
            Features; with `return_cache` also, for each order, the last `local_time - 1` frames.

        Raises:
            ValueError: for a cache of other shapes, or if the module is not causal.
        """
        if x.shape[-1] != self.dim:
            raise ValueError(f"features of shape {x.shape}: expected (b, t, h, w, dim) with dim={self.dim}")
        check_floating("features", x)
        before, after = (self.local_time - 1, 0) if self.causal else (self.local_time // 2,) * 2
        frames = lambda count: jnp.zeros((x.shape[0], count, *x.shape[2:]), x.dtype)
        past = (frames(before),) * self.orders if cache is None else cache
        if cache is not None:
            expect(self, "causal", self.causal, "True, as a cache is given")
        if [part.shape for part in past] != [frames(before).shape] * self.orders:
            expected = f"{self.orders} of {frames(before).shape}"
            raise ValueError(f"cache of shapes {[part.shape for part in past]}: expected {expected}")

        out, kept = Dense(self.dim, name="to_out")(x), []
        for i in range(self.orders):
            x = l2_normalize(x)
            around = jnp.concatenate([past[i], x, frames(after)], axis=1)
            kept.append(around[:, x.shape[1] :] if self.causal else None)
            x = self_similarity(x, around, (self.local_time, self.local_height, self.local_width))
            x = SimilarityEncoder(self.dim, self.local_time, self.hidden_dim, name=f"encoders_{i}")(x)
            out = out + Dense(self.dim, name=f"to_order_out_{i}")(x)
        return (out, tuple(kept)) if return_cache else out

    torch_rules = (
        (r"encoders_(\d+)/conv_1", r"encoders.\1.conv.0"),
        (r"encoders_(\d+)/conv_2", r"encoders.\1.conv.3"),
        (r"encoders_(\d+)/norm_1/g", r"encoders.\1.conv.1.gamma"),
        (r"encoders_(\d+)/norm_2/g", r"encoders.\1.conv.4.gamma"),
        (r"(encoders|to_order_out)_(\d+)", r"\1.\2"),
    )


def self_similarity(x: Features, around: Float[Array, "b u h w d"], sides: tuple[int, int, int]) -> Similarity:
    """Return the dot products of each vector with its neighbours, row by row. Those outside a frame are zero.

    Args:
        x: the vectors.
        around: their frames and further ones: frame i of `x` is compared with the frames i to i + time - 1.
        sides: (time, height, width) of the block of neighbours.
    """
    (t, h, w), (time, height, width) = x.shape[1:4], sides
    padded = jnp.pad(around, ((0, 0), (0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    shifted = (padded[:, i : i + t, j : j + h, k : k + w] for i, j, k in np.ndindex(time, height, width))
    return jnp.stack([(x * other).sum(axis=-1) for other in shifted], axis=-1)


def check_moss(model: nn.Module, prefix: str = "") -> None:
    """Check the arguments of MOSS.

    Args:
        model: a module that has them.
        prefix: what precedes their names there.

    Raises:
        ValueError: for an invalid argument.
    """
    at_least(model, **{f"{prefix}hidden_dim": 1, f"{prefix}orders": 0})
    for name in (f"{prefix}local_time", f"{prefix}local_height", f"{prefix}local_width"):
        side = getattr(model, name)
        expect(model, name, side > 0 and side % 2 == 1, "an odd number")
