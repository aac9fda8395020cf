"""The encoder of LeVJEPA for arrays with any number of axes, with causal attention along some of them.

Source: Kuhn et al., arXiv:2608.27395 (LeVJEPA). Upstream: vit_pytorch/levjepa_nd.py.
Differs from upstream: arrays may have any size that patches fill, not only `input_shape`; more than seven axes are
possible; `kept` can select the patches that are read (upstream: always drawn); the class token has an initial std of
0.02 (upstream: 1); the training method is the objective vit_jax/objectives/levjepa_nd.py.
Differs from the paper: any number of axes (paper: video); otherwise not known, as upstream was
not compared with the paper.
Axes: b batch, n tokens (the class token first), p patches, k patches that stay, a axes, d dim, h heads, r rotated
features of a head.
"""

import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vit_jax.frames.arguments import check_arguments
from vit_jax.frames.rules import PATCH_EMBED_RULES, TRANSFORMER_RULES
from vit_jax.layers import Blocks, Dense, FeedForward, LayerNorm, ToHeads, array_grid, attend, prepend
from vit_jax.layers.check import check_floating, expect
from vit_jax.layers.shapes import Tokens

Norm = functools.partial(nn.RMSNorm, epsilon=float(np.finfo(np.float32).eps))  # torch's default


class PatchEmbed(nn.Module):
    """Array (b, *shape, c) to tokens (b, p, dim), row by row: a linear map between two norms without bias."""

    patch_size: tuple[int, ...]
    dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "b *shape c"]) -> Tokens:
        axes, grid = len(self.patch_size), array_grid("input_shape", x.shape[1:-1], self.patch_size)
        x = x.reshape(x.shape[0], *np.ravel([*zip(grid, self.patch_size, strict=True)]), x.shape[-1])
        x = x.transpose(0, *range(1, 2 * axes, 2), 2 * axes + 1, *range(2, 2 * axes + 1, 2))
        x = jax.lax.collapse(jax.lax.collapse(x, axes + 1), 1, axes + 1)
        x = LayerNorm(use_bias=False, name="norm_in")(x)
        # The bias keeps blank patches from becoming zero, whose gradient every later norm would multiply.
        x = nn.Dense(self.dim, bias_init=nn.initializers.normal(0.02), name="proj")(x)
        return LayerNorm(use_bias=False, name="norm_out")(x)


def frequencies(dim_head: int, axes: int, max_freq: float) -> np.ndarray:
    """Half turns from the middle of an axis to its end, one for each pair of features that rotates along it."""
    return np.linspace(1.0, max_freq / 2, dim_head // (2 * axes), dtype=np.float32)


def rotations(places: np.ndarray, grid: tuple[int, ...], dim_head: int, max_freq: float) -> np.ndarray:
    """Sine and cosine, float32 (2, p, r), of patches at `places` (p, a) in `grid`; each axis has its own features."""
    along = (places / np.array(grid, np.float32) - 0.5) * 2
    angles = along[..., None] * frequencies(dim_head, len(grid), max_freq) * np.pi
    angles = np.repeat(angles.reshape(len(places), -1), 2, axis=1)
    return np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)


def rotate(x: Float[Array, "b h n f"], sin_cos: Float[Array, "2 #b n r"]) -> Float[Array, "b h n f"]:
    """Rotate the first r features of every token, in pairs, by the given angles."""
    sin, cos = sin_cos[:, :, None]
    turned, rest = jnp.split(x, [sin.shape[-1]], axis=-1)
    quarter = jnp.stack([-turned[..., 1::2], turned[..., ::2]], axis=-1).reshape(turned.shape)
    return jnp.concatenate([turned * cos + quarter * sin, rest], axis=-1)


class Attention(nn.Module):
    """Self-attention with rotary queries and keys; `mask` is True where a query may read a key."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Tokens, sin_cos: Float[Array, "2 #b n r"], mask: Bool[Array, "#b 1 n n"], *, train: bool = False
    ) -> Tokens:
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(Norm(name="norm")(x))
        out = attend(self, rotate(q, sin_cos), rotate(k, sin_cos), v, mask=mask)
        out = Dense(x.shape[-1], use_bias=False, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class CausalTrunk(nn.Module):
    """Base of LeVJEPA's encoders; a subclass defines the patch size along each axis and the causal axes."""

    pool: ClassVar[str] = "cls"

    @property
    def patch(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def causal(self) -> tuple[int, ...]:
        raise NotImplementedError

    def draw_kept(self, key: Array, shape: tuple[int, ...], drop_ratio: float) -> Int[Array, "b k"]:
        """Indices of the patches to keep in each array of `shape` (b, *shape, c), drawn uniformly."""
        patches = math.prod(array_grid("input_shape", shape[1:-1], self.patch))
        count = max(1, int(patches * (1 - drop_ratio)))
        return jax.lax.top_k(jax.random.uniform(key, (shape[0], patches)), count)[1]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *shape c"],
        *,
        drop_ratio: float | None = None,
        kept: Int[Array, "b k"] | None = None,
        train: bool = False,
    ) -> Tokens:
        if x.ndim != len(self.patch) + 2 or x.shape[-1] != self.channels:
            expected = f"(batch, {len(self.patch)} sides, channels) with channels={self.channels}"
            raise ValueError(f"input of shape {x.shape}: expected {expected}")
        check_floating("input", x)
        grid = array_grid("input_shape", x.shape[1:-1], self.patch)
        places = np.indices(grid).reshape(len(grid), -1).T
        # The class token has no place: it is not rotated, reads all tokens, and with causal axes no patch reads it.
        sin_cos = np.zeros((2, 1 + len(places), 2 * len(grid) * (self.dim_head // (2 * len(grid)))), np.float32)
        sin_cos[1], sin_cos[:, 1:] = 1, rotations(places, grid, self.dim_head, self.rotary_max_freq)
        mask = np.ones((1 + len(places),) * 2, bool)
        mask[1:, 1:] = (places[:, None] >= places[None])[..., list(self.causal)].all(axis=-1)
        mask[1:, 0] = not self.causal
        sin_cos, mask = jnp.asarray(sin_cos, x.dtype)[:, None], jnp.asarray(mask)[None]

        shape, x = x.shape, PatchEmbed(self.patch, self.dim, name="to_patch_embedding")(x)
        x = nn.Dropout(self.emb_dropout)(x, deterministic=not train)
        x = prepend(self.param("cls_token", nn.initializers.normal(0.02), (self.dim,))[None], x)
        if train and (kept is not None or drop_ratio is not None):
            kept = self.draw_kept(self.make_rng("dropout"), shape, drop_ratio) if kept is None else kept
            kept = jnp.pad(kept + 1, ((0, 0), (1, 0)))
            x = jnp.take_along_axis(x, kept[..., None], axis=1)
            sin_cos = sin_cos[:, 0, kept]
            mask = mask[0][kept[:, :, None], kept[:, None]]
        attention = functools.partial(Attention, self.heads, self.dim_head, self.dropout)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, self.dropout, Norm)
        x = Blocks(self.depth, attention, feed_forward, drop_path=self.drop_path, name="transformer")(
            x, sin_cos, mask[:, None], train=train
        )
        return Norm(name="norm")(x)

    torch_rules = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES)

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Frequencies of the rotations."""
        return {"rotary_emb.scales": frequencies(self.dim_head, len(self.patch), self.rotary_max_freq)}


def check_trunk(trunk: CausalTrunk) -> None:
    """Check the arguments of `trunk`.

    Raises:
        ValueError: if they are invalid, or `dim_head` has too few features to rotate along every
            axis.
    """
    check_arguments(trunk)
    pairs = 2 * len(trunk.patch)
    expected = f"at least {pairs}, a pair of features for each of {len(trunk.patch)} axes"
    expect(trunk, "dim_head", trunk.dim_head >= pairs, expected)


class NDTransformer(CausalTrunk):
    """Array (b, *shape, c) with `ndim` axes to tokens (b, n, d), the class token first.

    When `train`, the call reads only some patches: those with the indices `kept` (b, k), or a
    random share of 1 - `drop_ratio`, drawn with the rng "dropout". An array may have any size that
    patches fill.

    Args:
        ndim: number of axes, without batch and channels.
        input_shape: sides of an array, one number for each axis, or one for all; only checked
            against `patch_size`.
        patch_size: sides of a patch, one number for each axis, or one for all.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an array.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the patches before the first block.
        rotary_max_freq: largest frequency of the rotary positions.
        causal_dims: axes along which no patch attends to later ones. If there are any, patches do
            not attend to the class token.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide the sides of an array, `causal_dims` has an
            unknown axis, or `dim_head` is below 2 * `ndim`.
    """

    ndim: int
    input_shape: int | tuple[int, ...]
    patch_size: int | tuple[int, ...]
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    rotary_max_freq: float = 10.0
    causal_dims: int | tuple[int, ...] = (0,)
    drop_path: float = 0.0

    def __post_init__(self):
        expect(self, "ndim", self.ndim >= 1, "at least 1")
        for name, sides in (("input_shape", self._sides(self.input_shape)), ("patch_size", self.patch)):
            expect(self, name, len(sides) == self.ndim, f"one number, or {self.ndim}, one for each axis")
        array_grid("input_shape", self._sides(self.input_shape), self.patch)
        in_range = all(0 <= axis < self.ndim for axis in self.causal)
        expect(self, "causal_dims", in_range, f"axes from 0 to {self.ndim - 1}")
        check_trunk(self)
        super().__post_init__()

    def _sides(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * self.ndim if isinstance(value, int) else tuple(value)

    @property
    def patch(self) -> tuple[int, ...]:
        return self._sides(self.patch_size)

    @property
    def causal(self) -> tuple[int, ...]:
        return (self.causal_dims,) if isinstance(self.causal_dims, int) else tuple(self.causal_dims)


PRESETS = {"tiny": dict(ndim=2, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128)}
