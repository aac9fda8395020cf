"""Swin: attention within windows that are shifted by half a window in every second block.

Source: Liu et al. 2021, arXiv:2103.14030; version 2: Liu et al. 2021, arXiv:2111.09883. torchvision:
models/swin_transformer.py.
Axes: b batch, h rows, w columns, d features, m windows, n pixels of a window, i query, j key, k classes.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers import Dense, LayerNorm, ToHeads, attend, gelu, l2_normalize, relative_positions, sow_block
from vit_jax.layers.check import at_least, check_sides, expect
from vit_jax.layers.shapes import Images, Maps, Output

Queries = Float[Array, "b m heads n e"]


class Attention(nn.Module):
    """Attention within windows of `window_size` x `window_size` pixels, shifted by `shift` pixels.

    The map is padded to a multiple of the window size. Rolling the map brings pixels of opposite edges into one window;
    their attention scores are lowered by 100, so that they hardly attend to each other.
    """

    heads: int
    window_size: int
    attention_dropout: float
    dropout: float
    shift: int

    def biases(self, dtype: jnp.dtype) -> Float[Array, "offsets heads"]:
        """Return the relative position bias of every offset between two pixels."""
        shape = ((2 * self.window_size - 1) ** 2, self.heads)
        return self.param("relative_position_bias_table", nn.initializers.truncated_normal(0.02), shape)

    def project(self, x: Float[Array, "b m n d"]) -> tuple[Queries, Queries, Queries]:
        """Return queries, multiplied by the scale of the scores, keys and values."""
        q, k, v = ToHeads(3, self.heads, x.shape[-1] // self.heads, use_bias=True, name="qkv")(x)
        return q * q.shape[-1] ** -0.5, k, v

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        height, width, dim = x.shape[1:]
        side = self.window_size
        x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        padded = x.shape[1:3]
        shifts = tuple(self.shift if length > side else 0 for length in padded)
        x = jnp.roll(x, [-shift for shift in shifts], axis=(1, 2))
        x = rearrange(x, "b (h w1) (w w2) d -> b (h w) (w1 w2) d", w1=side, w2=side)

        bias = rearrange(self.biases(x.dtype)[relative_positions(side)], "i j heads -> 1 1 heads i j")
        bias = bias - 100 * jnp.asarray(strangers(padded, side, shifts), x.dtype)[None, :, None]
        q, k, v = self.project(x)
        x = attend(self, q, k, v, scale=1.0, bias=bias, dropout=self.attention_dropout, train=train)
        x = nn.Dropout(self.dropout)(Dense(dim, name="proj")(x), deterministic=not train)

        x = rearrange(x, "b (h w) (w1 w2) d -> b (h w1) (w w2) d", h=padded[0] // side, w1=side)
        return jnp.roll(x, shifts, axis=(1, 2))[:, :height, :width]


class CosineAttention(Attention):
    """Version 2: scores are cosine similarities times a learned scale, and an MLP computes biases from offsets."""

    def biases(self, dtype: jnp.dtype) -> Float[Array, "offsets heads"]:
        hidden = jax.nn.relu(Dense(512, name="cpb_mlp_0")(jnp.asarray(log_offsets(self.window_size), dtype)))
        logits = Dense(self.heads, use_bias=False, name="cpb_mlp_2")(hidden)
        return 16 * jax.nn.sigmoid(logits).reshape(-1, self.heads)

    def project(self, x: Float[Array, "b m n d"]) -> tuple[Queries, Queries, Queries]:
        dim = x.shape[-1]
        bias = self.param("qkv_bias", nn.initializers.zeros, (3 * dim,))
        bias = bias.at[dim : 2 * dim].set(0)  # torchvision stores a bias for the keys but sets it to zero
        qkv = Dense(3 * dim, use_bias=False, name="qkv")(x) + bias.reshape(1, 1, 1, -1)
        q, k, v = rearrange(qkv, "b m n (qkv h e) -> qkv b m h n e", qkv=3, h=self.heads)
        scale = self.param("logit_scale", nn.initializers.constant(math.log(10)), (self.heads, 1, 1))
        scale = jnp.exp(jnp.minimum(scale, math.log(100)))[None, None]
        return l2_normalize(q) * scale, l2_normalize(k), v


def strangers(size: tuple[int, int], window_size: int, shifts: tuple[int, int]) -> np.ndarray:
    """Return which pairs of pixels in each window of a rolled map come from opposite edges, (m, n, n).

    Args:
        size: height and width of the map.
        window_size: height and width of a window.
        shifts: shift along both axes.
    """
    rows, columns = (np.arange(length) >= length - shift for length, shift in zip(size, shifts, strict=True))
    region = 2 * rows[:, None] + columns
    region = rearrange(region, "(h w1) (w w2) -> (h w) (w1 w2)", w1=window_size, w2=window_size)
    return region[:, :, None] != region[:, None]


def log_offsets(window_size: int) -> np.ndarray:
    """Return the offsets between two pixels of a window, on a logarithmic scale, (1, rows, columns, 2)."""
    offset = np.arange(1 - window_size, window_size, dtype=np.float32) / np.float32(window_size - 1) * np.float32(8)
    offset = np.sign(offset) * np.log2(np.abs(offset) + 1) / np.float32(3)
    return np.stack(np.meshgrid(offset, offset, indexing="ij"), axis=-1)[None]


class MLP(nn.Module):
    """Feed-forward without a norm."""

    hidden_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        hidden = nn.Dropout(self.dropout)(gelu(Dense(self.hidden_dim, name="fc1")(x)), deterministic=not train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="fc2")(hidden), deterministic=not train)


class Block(nn.Module):
    """Attention and feed-forward with residual connections. Norms are before them, in version 2 after them."""

    version: int
    attention: Callable[..., nn.Module]
    mlp_ratio: int | float
    dropout: float
    stochastic_depth_prob: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        attention = self.attention(name="attn")
        mlp = MLP(int(self.mlp_ratio * x.shape[-1]), self.dropout, name="mlp")
        for i, part in enumerate((attention, mlp), 1):
            norm = LayerNorm(name=f"norm{i}")
            y = part(norm(x), train=train) if self.version == 1 else norm(part(x, train=train))
            x = x + nn.Dropout(self.stochastic_depth_prob, broadcast_dims=(1, 2, 3))(y, deterministic=not train)
        return x


class PatchMerging(nn.Module):
    """Merge 2x2 pixels into one with twice the features. An odd height or width is padded.

    The norm is before the linear layer, in version 2 after it.
    """

    version: int

    @nn.compact
    def __call__(self, x: Maps) -> Float[Array, "b u v e"]:
        _, height, width, dim = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = rearrange(x, "b (h h2) (w w2) d -> b h w (w2 h2 d)", h2=2, w2=2)
        norm, reduction = LayerNorm(name="norm"), Dense(2 * dim, use_bias=False, name="reduction")
        return reduction(norm(x)) if self.version == 1 else norm(reduction(x))


class SwinTransformer(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to normalised, pooled features (b, d).

    Args:
        embed_dim: width of the first stage; it doubles with each stage.
        depths: number of blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: height and width of a window in pixels.
        version: 1 or 2.
        mlp_ratio: hidden width of the feed-forward by that of the stage.
        dropout: rate after linear layers.
        attention_dropout: rate on attention maps.
        stochastic_depth_prob: probability that a branch of the last block is skipped in training; it rises linearly
            from 0 at the first block.
        num_classes: number of classes; 0 for features.
        channels: channels of an image.

    Raises:
        ValueError: for another `version`, if heads do not divide a stage's width, or for a rate outside 0 to 1.
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int
    version: int = 1
    mlp_ratio: int | float = 4
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth_prob: float = 0.1
    num_classes: int = 1000
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        at_least(self, embed_dim=1, depths=1, num_heads=1, window_size=2, mlp_ratio=0)
        expect(self, "version", self.version in (1, 2), "1 or 2")
        stages = len(self.depths)
        expect(self, "num_heads", len(self.num_heads) == stages, f"one number for each of depths={self.depths}")
        fits = all(self.embed_dim * 2**i % heads == 0 for i, heads in enumerate(self.num_heads))
        expect(self, "embed_dim", fits, f"a width that, doubled with each stage, num_heads={self.num_heads} divide")
        expect(self, "stochastic_depth_prob", 0 <= self.stochastic_depth_prob <= 1, "0 to 1")
        super().__post_init__()

    @property
    def windows(self) -> tuple[int, ...]:
        """Height and width of the windows of each stage in pixels."""
        return (self.window_size,) * len(self.depths)

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        check_sides("image_size", images.shape[1:3], lambda side: side >= 4)
        x = nn.Conv(self.embed_dim, (4, 4), strides=4, padding="VALID", name="features_0_0")(images)
        x = LayerNorm(name="features_0_2")(x)
        probs = iter(np.linspace(0, self.stochastic_depth_prob, sum(self.depths)).tolist())
        kind = Attention if self.version == 1 else CosineAttention
        for i, (depth, heads, window) in enumerate(zip(self.depths, self.num_heads, self.windows, strict=True)):
            if i:
                x = PatchMerging(self.version, name=f"features_{2 * i}")(x)
            attention = functools.partial(kind, heads, window, self.attention_dropout, self.dropout)
            for j in range(depth):
                shifted = functools.partial(attention, window // 2 if j % 2 else 0)
                fields = (self.version, shifted, self.mlp_ratio, self.dropout, next(probs))
                x = sow_block(self, Block(*fields, name=f"features_{2 * i + 1}_{j}")(x, train=train))
        x = LayerNorm(name="norm")(x).mean(axis=(1, 2))
        return Dense(self.num_classes, name="head")(x) if self.num_classes else x

    torch_rules = (
        (r"features_(\d+)_(\d+)", r"features.\1.\2"),
        (r"features_(\d+)", r"features.\1"),
        (r"cpb_mlp_(\d)", r"cpb_mlp.\1"),
        ("qkv_bias", "qkv.bias"),
        ("mlp/fc1", "mlp.0"),
        ("mlp/fc2", "mlp.3"),
    )

    def torch_constants(self) -> dict[str, np.ndarray]:
        """The tables that torchvision stores in every attention."""
        tables = {"relative_position_index": relative_positions(self.window_size).ravel()}
        if self.version == 2:
            tables["relative_coords_table"] = log_offsets(self.window_size)
        return {
            f"features.{2 * i + 1}.{j}.attn.{name}": table
            for i, depth in enumerate(self.depths)
            for j in range(depth)
            for name, table in tables.items()
        }


def _sizes(embed_dim, third_depth, stochastic_depth_prob, version=1):
    return dict(
        embed_dim=embed_dim,
        depths=(2, 2, third_depth, 2),
        num_heads=tuple(embed_dim // 32 * 2**i for i in range(4)),
        window_size=7 if version == 1 else 8,
        stochastic_depth_prob=stochastic_depth_prob,
        version=version,
    )


PRESETS = {
    "swin_t": _sizes(96, 6, 0.2),
    "swin_s": _sizes(96, 18, 0.3),
    "swin_b": _sizes(128, 18, 0.5),
    "swin_v2_t": _sizes(96, 6, 0.2, version=2),
    "swin_v2_s": _sizes(96, 18, 0.3, version=2),
    "swin_v2_b": _sizes(128, 18, 0.5, version=2),
}
