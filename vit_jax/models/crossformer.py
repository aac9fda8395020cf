"""CrossFormer: embeddings of patches of several sizes, and attention among neighbours by turns with distant pixels.

Source: Wang et al. 2021, arXiv:2108.00154. Upstream: vit_pytorch/crossformer.py.
Differs from upstream: `paper_position_bias` gives position biases of the paper's offsets; `num_classes=0` gives the
last feature map; `image_size` may say what the model is meant for, and is checked.
Differs from the paper: without `paper_position_bias`, biases are of the wrong offsets, as upstream looks them up with
another row length than the table has; heads share one bias; blocks come in pairs; no norm before the head.
Axes: b batch, r rows, c columns (of a feature map), h heads, i query, j key, d features, k classes.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import ChannelNorm, Dense, LayerNorm, PointwiseConv, gelu, softmax
from vit_jax.layers.check import at_least, check_arguments, check_images, check_sides

DIM_HEAD = 32
WINDOWS = {"short": "b (r p) (c q)", "long": "b (p r) (q c)"}  # of neighbours; of pixels at equal distances


class CrossEmbed(nn.Module):
    """Convolutions of several `kernels`, centred at the same pixels; the larger the kernel, the fewer its features."""

    dim: int
    kernels: tuple[int, ...]
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b r c d"]) -> Float[Array, "b r2 c2 e"]:
        dims = [self.dim // 2**i for i in range(1, len(self.kernels))]
        maps = []
        for i, (kernel, dim) in enumerate(zip(sorted(self.kernels), [*dims, self.dim - sum(dims)], strict=True)):
            stride, padding = (self.stride, self.stride), (kernel - self.stride) // 2
            maps.append(nn.Conv(dim, (kernel, kernel), stride, padding=padding, name=f"convs_{i}")(x))
        return jnp.concatenate(maps, axis=-1)


class PositionBias(nn.Module):
    """A small network from offsets (dy, dx) between pixels of a window to biases (i, j), as `paper_offsets` or not."""

    dim: int
    window: int
    paper_offsets: bool

    @nn.compact
    def __call__(self, dtype: jnp.dtype) -> Float[Array, "i j"]:
        reach = self.window - 1 if self.paper_offsets else self.window
        offsets = list(itertools.product(range(-reach, reach + 1), repeat=2))
        x = jnp.asarray(offsets, dtype)
        for i in range(3):
            x = Dense(self.dim, name=f"fc_{i}")(x)
            x = jax.nn.relu(LayerNorm(name=f"norm_{i}")(x))
        biases = Dense(1, name="fc_3")(x)[:, 0]

        y, x = np.mgrid[: self.window, : self.window].reshape(2, -1)
        dy, dx = (along[:, None] - along[None, :] + self.window - 1 for along in (y, x))
        return biases[dy * (2 * self.window - 1) + dx]


class Attention(nn.Module):
    """Attention within windows of `window` pixels each way, of neighbours ("short") or spread over the map ("long")."""

    reach: str
    window: int
    paper_position_bias: bool
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b r c d"], *, train: bool = False) -> Float[Array, "b r c d"]:
        dim, pixels = x.shape[-1], WINDOWS[self.reach]
        heads, window = dim // DIM_HEAD, dict(p=self.window, q=self.window)
        x = ChannelNorm(name="norm")(x)
        qkv = PointwiseConv(3 * heads * DIM_HEAD, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, f"{pixels} (qkv h d) -> qkv b r c h (p q) d", qkv=3, h=heads, **window)
        bias = PositionBias(dim // 4, self.window, self.paper_position_bias, name="dpb")(x.dtype)
        scores = jnp.einsum("brchid,brchjd->brchij", q, k) * DIM_HEAD**-0.5
        attn = softmax(scores + bias.reshape(1, 1, 1, 1, *bias.shape))
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = jnp.einsum("brchij,brchjd->brchid", attn, v)
        out = rearrange(out, f"b r c h (p q) d -> {pixels} (h d)", **window)
        return PointwiseConv(dim, name="to_out")(out)


class FeedForward(nn.Module):
    """Pre-norm feed-forward block of a feature map, with no dropout at its end."""

    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b r c d"], *, train: bool = False) -> Float[Array, "b r c d"]:
        dim = x.shape[-1]
        x = PointwiseConv(4 * dim, name="fc1")(ChannelNorm(name="norm")(x))
        x = nn.Dropout(self.dropout)(gelu(x), deterministic=not train)
        return PointwiseConv(dim, name="fc2")(x)


class CrossFormer(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, r, c, d).

    There are four stages: arguments are one value for all, or a tuple of four. `depth` counts pairs of blocks, heads
    have 32 features, and `global_window_size` counts the pixels that attend to each other, not their distance.
    Raises ValueError for a `dim` below 32, for kernels that give maps of different sizes, for images whose maps windows
    do not fill.
    """

    dim: int | tuple[int, ...] = (64, 128, 256, 512)
    depth: int | tuple[int, ...] = (2, 2, 8, 2)
    global_window_size: int | tuple[int, ...] = (8, 4, 2, 1)
    local_window_size: int | tuple[int, ...] = 7
    cross_embed_kernel_sizes: tuple[tuple[int, ...], ...] = ((4, 8, 16, 32), (2, 4), (2, 4), (2, 4))
    cross_embed_strides: int | tuple[int, ...] = (4, 2, 2, 2)
    num_classes: int = 1000
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    channels: int = 3
    image_size: int | tuple[int, int] | None = None
    paper_position_bias: bool = False

    def __post_init__(self):
        check_arguments(self)
        at_least(self, dim=DIM_HEAD, global_window_size=1, local_window_size=1, cross_embed_strides=1)
        for kernels, stride in zip(*map(self._four, ("cross_embed_kernel_sizes", "cross_embed_strides")), strict=True):
            if min(kernels) < stride or len({kernel % 2 for kernel in kernels}) > 1:
                raise ValueError(
                    f"cross_embed_kernel_sizes={self.cross_embed_kernel_sizes!r}: expected all odd or all even ones in "
                    f"a stage, none smaller than its stride, as cross_embed_strides={self.cross_embed_strides!r} says"
                )
        self._stages()
        if self.image_size is not None:
            check_sides("image_size", self.image_size, self._fits)
        super().__post_init__()

    def _four(self, name: str) -> tuple:
        value = getattr(self, name)
        four = (value,) * 4 if isinstance(value, int) else tuple(value)
        if len(four) != 4:
            raise ValueError(f"{name}={value!r}: expected one for each of four stages")
        return four

    def _stages(self):
        names = ("dim", "depth", "local_window_size", "global_window_size")
        return zip(*map(self._four, (*names, "cross_embed_kernel_sizes", "cross_embed_strides")), strict=True)

    def _fits(self, side: int) -> bool:
        for _, _, short, long, kernels, stride in self._stages():
            side = (side - stride - (kernels[0] - stride) % 2) // stride + 1
            if side < 1 or side % short or side % long:
                return False
        return True

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        check_images(images, self.channels)
        check_sides("images", images.shape[1:3], self._fits)
        x = images
        for i, (dim, depth, short, long, kernels, stride) in enumerate(self._stages()):
            x = CrossEmbed(dim, tuple(kernels), stride, name=f"embed_{i}")(x)
            for j in range(depth):
                for reach, window in (("short", short), ("long", long)):
                    attention = (reach, window, self.paper_position_bias, self.attn_dropout)
                    x = x + Attention(*attention, name=f"{reach}_attn_{i}_{j}")(x, train=train)
                    x = x + FeedForward(self.ff_dropout, name=f"{reach}_ff_{i}_{j}")(x, train=train)
        return Dense(self.num_classes, name="head")(x.mean(axis=(1, 2))) if self.num_classes else x


def _paper(dim, depth):
    """As the paper has it: groups of 7 x 7 pixels near and far; half as many pairs as the paper has blocks."""
    dims = (dim, 2 * dim, 4 * dim, 8 * dim)
    return dict(image_size=224, dim=dims, depth=depth, global_window_size=7, paper_position_bias=True)


PRESETS = {
    "tiny": dict(
        image_size=32,
        dim=(32, 32, 64, 64),
        depth=1,
        global_window_size=(4, 4, 2, 1),
        local_window_size=(4, 4, 2, 1),
        cross_embed_kernel_sizes=((4, 8), (2, 4), (2, 4), (2, 4)),
    ),
    "s": _paper(96, (1, 1, 3, 1)),
    "b": _paper(96, (1, 1, 9, 1)),
    "l": _paper(128, (1, 1, 9, 1)),
}

_FEED_FORWARD = (("norm", 0), ("fc1", 1), ("fc2", 4))

TORCH_RULES = (
    (r"embed_(\d+)/convs_(\d+)", r"layers.\1.0.convs.\2"),
    *((rf"short_ff_(\d+)_(\d+)/{ours}", rf"layers.\1.1.layers.\2.1.{theirs}") for ours, theirs in _FEED_FORWARD),
    *((rf"long_ff_(\d+)_(\d+)/{ours}", rf"layers.\1.1.layers.\2.3.{theirs}") for ours, theirs in _FEED_FORWARD),
    (r"short_attn_(\d+)_(\d+)", r"layers.\1.1.layers.\2.0"),
    (r"long_attn_(\d+)_(\d+)", r"layers.\1.1.layers.\2.2"),
    *((f"dpb/fc_{i}", f"dpb.{3 * i}") for i in range(4)),
    *((f"dpb/norm_{i}", f"dpb.{3 * i + 1}") for i in range(3)),
    ("head", "to_logits.1"),
)
