"""MaxViT: convolution, attention within windows and attention over a dilated grid, in every block.

Source: Tu et al. 2022, arXiv:2204.01697. Upstream: vit_pytorch/max_vit.py.
Differs from upstream: convolution branches drop with `mbconv_dropout`, sample by sample (upstream's Dropsample crashes
and no argument reaches it); `image_size` may be given, to be checked at construction; `num_classes=0` gives the last
map; position biases start at a deviation of 0.02 (upstream: 1).
Differs from the paper: no norm in the stem, no pre-norm and, where a stage begins, no shortcut in MBConv; no biases in
attention; one linear map as head; squeeze-excitation is four times as wide, but not in the paper's presets.
Axes: b batch (times windows), x rows, y columns, n pixels of a window, h heads, i query, j key, d dim, k classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import (
    BatchNorm,
    Dense,
    DepthwiseConv,
    FeedForward,
    LayerNorm,
    NormHead,
    PointwiseConv,
    gelu,
    softmax,
)
from vit_jax.layers.check import at_least, check_arguments, check_images
from vit_jax.layers.rules import feed_forward_rules
from vit_jax.layers.stages import check_depth, check_windows


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze-excitation; one that halves the map has no residual."""

    dim: int
    downsample: bool
    expansion_rate: int | float
    shrinkage_rate: int | float
    dropout: int | float

    @nn.compact
    def __call__(self, x: Float[Array, "b x y d"], *, train: bool = False) -> Float[Array, "b u v e"]:
        hidden_dim = int(self.expansion_rate * self.dim)
        y = PointwiseConv(hidden_dim, name="expand")(x)
        y = gelu(BatchNorm(name="expand_norm")(y, train=train))
        y = DepthwiseConv(kernel=3, stride=2 if self.downsample else 1, name="depthwise")(y)
        y = gelu(BatchNorm(name="depthwise_norm")(y, train=train))
        gate = Dense(int(hidden_dim * self.shrinkage_rate), use_bias=False, name="squeeze")(y.mean(axis=(1, 2)))
        gate = jax.nn.sigmoid(Dense(hidden_dim, use_bias=False, name="excite")(jax.nn.silu(gate)))
        y = PointwiseConv(self.dim, name="project")(y * gate[:, None, None])
        y = BatchNorm(name="project_norm")(y, train=train)
        if self.downsample:
            return y
        # One draw for all of a sample's branch: stochastic depth.
        return x + nn.Dropout(self.dropout, broadcast_dims=(1, 2, 3), name="dropsample")(y, deterministic=not train)


def relative_positions(window_size: int) -> np.ndarray:
    """For each pair of a window's pixels the number of their offset: (n, n), from 0 to (2 window_size - 1)**2 - 1."""
    row, column = np.mgrid[:window_size, :window_size].reshape(2, -1)
    offset = lambda side: side[:, None] - side[None] + window_size - 1
    return offset(row) * (2 * window_size - 1) + offset(column)


class Attention(nn.Module):
    """Self-attention within windows, with a learned bias for each offset."""

    dim_head: int
    window_size: int
    dropout: float

    def positions(self) -> np.ndarray:
        """The number of the bias for each query and key."""
        return relative_positions(self.window_size)

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim, heads = x.shape[-1], x.shape[-1] // self.dim_head
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=heads)
        positions = self.positions()
        biases = nn.Embed(positions.max() + 1, heads, embedding_init=nn.initializers.normal(0.02), name="rel_pos_bias")
        bias = rearrange(biases(positions), "i j h -> 1 h i j")
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5 + bias)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        out = Dense(dim, use_bias=False, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


# Windows are neighbouring pixels; those of the grid lie as far apart as they can.
WINDOWS, GRID = "b (x w1) (y w2) d", "b (w1 x) (w2 y) d"


class Block(nn.Module):
    """MBConv, attention within windows and attention over the grid: (b, x, y, c) to (b, u, v, dim)."""

    dim: int
    downsample: bool
    dim_head: int
    window_size: int
    mbconv: tuple[int | float, ...]
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b x y d"], *, train: bool = False) -> Float[Array, "b u v e"]:
        x = MBConv(self.dim, self.downsample, *self.mbconv, name="mbconv")(x, train=train)
        window = dict(w1=self.window_size, w2=self.window_size)
        sizes = dict(x=x.shape[1] // self.window_size, y=x.shape[2] // self.window_size)
        for name, layout in (("window", WINDOWS), ("grid", GRID)):
            x = rearrange(x, f"{layout} -> (b x y) (w1 w2) d", **window)
            x = x + Attention(self.dim_head, self.window_size, self.dropout, name=f"{name}_attn")(x, train=train)
            x = x + FeedForward(4 * self.dim, self.dropout, name=f"{name}_ff")(x, train=train)
            x = rearrange(x, f"(b x y) (w1 w2) d -> {layout}", **window, **sizes)
        return x


class MaxViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last map (b, h, w, d).

    `depth` has one number per stage, and the width doubles from each to the next.
    Raises ValueError when windows do not tile the maps of an image, or heads do not fill `dim`.
    """

    num_classes: int
    dim: int
    depth: tuple[int, ...]
    dim_head: int = 32
    dim_conv_stem: int | None = None
    window_size: int = 7
    mbconv_expansion_rate: int | float = 4
    mbconv_shrinkage_rate: int | float = 0.25
    dropout: float = 0.1
    channels: int = 3
    mbconv_dropout: float = 0.0
    image_size: int | tuple[int, int] | None = None

    def __post_init__(self):
        check_arguments(self)
        check_depth(self)
        at_least(self, dim_conv_stem=1, window_size=1)
        if self.dim % self.dim_head:
            raise ValueError(f"dim={self.dim}: expected a multiple of dim_head={self.dim_head}")
        if not 0 <= self.mbconv_dropout <= 1:
            raise ValueError(f"mbconv_dropout={self.mbconv_dropout}: expected 0 to 1")
        if self.image_size is not None:
            check_windows(self.image_size, (self.window_size,) * len(self.depth))
        super().__post_init__()

    def make_block(self, dim: int, downsample: bool, name: str) -> nn.Module:
        """A block of the network, which a variant overrides."""
        mbconv = (self.mbconv_expansion_rate, self.mbconv_shrinkage_rate, self.mbconv_dropout)
        return Block(dim, downsample, self.dim_head, self.window_size, mbconv, self.dropout, name=name)

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        check_images(images, self.channels)
        check_windows(images.shape[1:3], (self.window_size,) * len(self.depth))
        stem_dim = self.dim_conv_stem or self.dim
        x = nn.Conv(stem_dim, (3, 3), strides=(2, 2), padding=1, name="stem_1")(images)
        x = nn.Conv(stem_dim, (3, 3), padding=1, name="stem_2")(x)
        for i, depth in enumerate(self.depth):
            for j in range(depth):
                x = self.make_block(2**i * self.dim, j == 0, f"stage_{i}_block_{j}")(x, train=train)
        return NormHead(self.num_classes, name="mlp_head")(x.mean(axis=(1, 2))) if self.num_classes else x


def _paper(dim, dim_conv_stem, depth):
    return dict(image_size=224, dim=dim, dim_conv_stem=dim_conv_stem, depth=depth, mbconv_shrinkage_rate=1 / 16)


PRESETS = {
    "tiny": dict(image_size=32, dim=32, depth=(1, 1), dim_head=16, window_size=4, mbconv_expansion_rate=2),
    "t": _paper(64, 64, (2, 2, 5, 2)),
    "s": _paper(96, 64, (2, 2, 5, 2)),
    "b": _paper(96, 64, (2, 6, 14, 2)),
    "l": _paper(128, 128, (2, 6, 14, 2)),
}

MBCONV_RULES = (
    ("stem_1", "conv_stem.0"),
    ("stem_2", "conv_stem.1"),
    ("expand", "0"),
    ("expand_norm", "1"),
    ("depthwise", "3"),
    ("depthwise_norm", "4"),
    ("squeeze", "6.gate.1"),
    ("excite", "6.gate.3"),
    ("project", "7"),
    ("project_norm", "8"),
    ("mlp_head/norm", "mlp_head.1"),
    ("mlp_head/fc", "mlp_head.2"),
)


def block_numbers(model: MaxViT) -> dict[str, tuple[int, str]]:
    """Of each block by name: its number in upstream's one list, and where in MBConv, if residual, the layers are."""
    names = [(i, j) for i, depth in enumerate(model.depth) for j in range(depth)]
    return {f"stage_{i}_block_{j}": (n, ".fn" if j else "") for n, (i, j) in enumerate(names)}


def torch_rules(model: MaxViT) -> tuple[tuple[str, str], ...]:
    """Upstream's blocks are Sequentials, with rearrangements between their layers."""
    blocks = block_numbers(model).items()
    return (
        *((f"{name}/mbconv", f"layers.{n}.0{inner}") for name, (n, inner) in blocks),
        *((name, f"layers.{n}") for name, (n, _) in blocks),
        *MBCONV_RULES,
        ("window_attn/to_out", "2.fn.to_out.0"),
        ("window_attn", "2.fn"),
        *feed_forward_rules("window_ff", "3.fn.net"),
        ("grid_attn/to_out", "6.fn.to_out.0"),
        ("grid_attn", "6.fn"),
        *feed_forward_rules("grid_ff", "7.fn.net"),
    )
