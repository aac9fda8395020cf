"""LeViT: convolutions, then attention with position biases over feature maps that shrink from stage to stage.

Source: Graham et al. 2021, arXiv:2104.01136. Upstream: vit_pytorch/levit.py.
Differs from upstream: `paper=True` computes the paper's form; images may be non-square, of any number of `channels`;
`num_classes=0` gives the last feature map; position biases start at 0 (upstream: std 1, times the root of `dim_key`),
the norms after subsampling attention at 1 (upstream: 0, which blocks the signal, as there is no residual).
Differs from the paper: position biases are multiplied by the root of `dim_key`; logits of the two heads are not
averaged; without `paper=True` the stem has neither norms nor activations and other widths, feed-forwards and heads
have no norms, attention ends in a GELU (paper: Hardswish), and subsampling attention has twice the heads of its stage,
without wider values.
Axes: b batch, r rows, s columns (of a feature map), h heads, i query, j key, d features, k classes.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import sequential_rules
from vit_jax.layers import BatchNorm, Dense, PointwiseConv, attend, drop_paths, gelu, sow_block, stage_rates
from vit_jax.layers.check import at_least, check_sides, expect, pair
from vit_jax.layers.shapes import Images, Maps, Output


class Projection(nn.Module):
    """1x1 convolution, followed by a batch norm if `normed`, whose scale starts as `scale_init` says."""

    features: int
    use_bias: bool = False
    normed: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b h w e"]:
        x = PointwiseConv(self.features, self.use_bias, name="conv")(x)
        return BatchNorm(scale_init=self.scale_init, name="norm")(x, train=train) if self.normed else x


class Attention(nn.Module):
    """Attention over a map with a bias for each distance; queries are subsampled by `stride`."""

    activation: Callable[[Array], Array]  # of the heads' outputs
    use_bias: bool  # in the last linear map
    stride: int
    dim: int
    heads: int
    dim_key: int
    dim_value: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b r s d"], *, train: bool = False) -> Float[Array, "b r2 s2 e"]:
        queries = x[:, :: self.stride, :: self.stride]
        q = Projection(self.heads * self.dim_key, name="to_q")(queries, train=train)
        k = Projection(self.heads * self.dim_key, name="to_k")(x, train=train)
        v = Projection(self.heads * self.dim_value, name="to_v")(x, train=train)
        q, k, v = (rearrange(t, "b r s (h d) -> b h (r s) d", h=self.heads) for t in (q, k, v))
        _, rows, columns, _ = x.shape
        biases = nn.Embed(rows * columns, self.heads, embedding_init=nn.initializers.zeros, name="pos_bias").embedding
        bias = rearrange(biases[distances(rows, columns, self.stride)], "i j h -> 1 h i j") * self.dim_key**0.5
        out = attend(self, q, k, v, bias=bias, dropout=self.dropout, train=train)
        out = out.reshape(*queries.shape[:3], out.shape[-1])
        init = nn.initializers.zeros if self.stride == 1 else nn.initializers.ones
        out = Projection(self.dim, self.use_bias, scale_init=init, name="to_out")(self.activation(out), train=train)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


def distances(rows: int, columns: int, stride: int) -> np.ndarray:
    """Index of the distance (rows, columns) from each query i to each key j, numbered row by row.

    Queries are every `stride`-th pixel.
    """
    y, x = np.mgrid[:rows, :columns]
    apart = lambda along: np.abs(along[::stride, ::stride].reshape(-1, 1) - along.reshape(1, -1))
    return apart(y) * columns + apart(x)


class FeedForward(nn.Module):
    """Two linear maps around a Hardswish; each has a norm if `normed`, otherwise a bias."""

    normed: bool
    mult: int
    dropout: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        dim, form = x.shape[-1], dict(use_bias=not self.normed, normed=self.normed)
        x = jax.nn.hard_swish(Projection(self.mult * dim, **form, name="fc1")(x, train=train))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = Projection(dim, **form, scale_init=nn.initializers.zeros, name="fc2")(x, train=train)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class LeViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, h, w, d).

    With `num_distill_classes` it returns a pair: these logits and those of the distillation head.

    Args:
        image_size: pixels, or (height, width), multiples of 16.
        num_classes: number of classes; 0 for the last feature map.
        dim: width of a pixel of the map, one number, or one for each stage; the last holds for the
            remaining stages.
        depth: number of blocks, one number, or one for each stage; the last holds for the remaining
            stages.
        heads: attention heads, one number, or one for each stage; the last holds for the remaining
            stages.
        mlp_mult: hidden width of each feed-forward, as a multiple of its input.
        stages: number of stages.
        dim_key: width of a head's queries and keys.
        dim_value: width of a head's values.
        dropout: rate within the blocks.
        num_distill_classes: classes of a second head, for distillation; None for no second head.
        channels: channels of an image.
        paper: the paper's form instead of upstream's.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if 16 does not divide `image_size`, or, with `paper`, 8 does not divide the
            first `dim` or `dim_key` does not divide all but the last.
    """

    image_size: int | tuple[int, int]
    num_classes: int
    dim: int | tuple[int, ...]
    depth: int | tuple[int, ...]
    heads: int | tuple[int, ...]
    mlp_mult: int
    stages: int = 3
    dim_key: int = 32
    dim_value: int = 64
    dropout: float = 0.0
    num_distill_classes: int | None = None
    channels: int = 3
    paper: bool = False
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        at_least(self, mlp_mult=1, stages=1, dim_key=1, dim_value=1, num_distill_classes=1)
        for name in ("dim", "depth", "heads"):
            expect(self, name, len(self._per_stage(name)) == self.stages, f"1 to stages={self.stages} numbers")
        dims = self._per_stage("dim")
        fits = dims[0] % 8 == 0 and not any(dim % self.dim_key for dim in dims[:-1])
        expect(self, "dim", fits or not self.paper, f"multiples of dim_key={self.dim_key}, the first of 8 too")
        check_sides("image_size", self.image_size, lambda side: side % 16 == 0)
        super().__post_init__()

    def _per_stage(self, name: str) -> tuple[int, ...]:
        value = getattr(self, name)
        values = (value,) if isinstance(value, int) else tuple(value)
        return values + values[-1:] * (self.stages - len(values))

    def _layers(self) -> Iterator[tuple[int, int, tuple, tuple]]:
        """Stages and the subsampling layers between them, in the order of upstream's backbone.

        Each is (depth, stride, arguments of the attention, arguments of the feed-forward).
        """
        dims, depths, heads = map(self._per_stage, ("dim", "depth", "heads"))
        for i, dim in enumerate(dims):
            if i > 0:
                wide = (dims[i - 1] // self.dim_key, self.dim_key, 4 * self.dim_key)
                sizes = wide if self.paper else (2 * heads[i - 1], self.dim_key, self.dim_value)
                yield 1, 2, (dim, *sizes, 0.0), (2, 0.0)
            attn = (dim, heads[i], self.dim_key, self.dim_value, self.dropout)
            yield depths[i], 1, attn, (self.mlp_mult, self.dropout)

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output | tuple[Output, Float[Array, "b l"]]:
        check_images(images, self.channels)
        if images.shape[1:3] != pair("image_size", self.image_size):
            raise ValueError(f"images of shape {images.shape}: expected sides of image_size={self.image_size!r}")
        x, dim = images, self._per_stage("dim")[0]
        for i, width in enumerate((dim // 8, dim // 4, dim // 2, dim) if self.paper else (32, 64, 128, dim)):
            x = nn.Conv(width, (3, 3), 2, padding=1, use_bias=not self.paper, name=f"stem_{i}")(x)
            if self.paper:
                x = BatchNorm(name=f"stem_norm_{i}")(x, train=train)
                x = jax.nn.hard_swish(x) if width < dim else x
        activation = jax.nn.hard_swish if self.paper else gelu
        layers = list(self._layers())
        rates = stage_rates(self.drop_path, [depth for depth, *_ in layers])
        for n, (depth, stride, attn, ff) in enumerate(layers):
            for i, drop_path in enumerate(drop_paths(self, rates[n], depth, train)):
                y = Attention(activation, not self.paper, stride, *attn, name=f"attn_{n}_{i}")(x, train=train)
                x = x + drop_path(y) if stride == 1 else y
                x = x + drop_path(FeedForward(self.paper, *ff, name=f"ff_{n}_{i}")(x, train=train))
                sow_block(self, x)
        if not self.num_classes:
            return x
        logits, pooled = [], x.mean(axis=(1, 2))
        for name, classes in (("mlp_head", self.num_classes), ("distill_head", self.num_distill_classes)):
            if classes is not None:
                y = BatchNorm(name=f"{name}_norm")(pooled, train=train) if self.paper else pooled
                logits.append(Dense(classes, name=name)(y))
        return tuple(logits) if len(logits) > 1 else logits[0]

    torch_rules = (
        (r"attn_(\d+)_(\d+)", r"backbone.\1.layers.\2.0"),
        (r"ff_(\d+)_(\d+)", r"backbone.\1.layers.\2.1"),
        (r"stem_(\d+)", r"conv_embedding.\1"),
        *sequential_rules(r"(to_[qkv])", r"\1", conv=0, norm=1),
        *sequential_rules("to_out", "to_out", conv=1, norm=2),
        ("fc1/conv", "net.0"),
        ("fc2/conv", "net.3"),
        (r"(fc\d)/norm", r"\1_norm"),
    )

    def torch_constants(self) -> dict[str, np.ndarray]:
        """The distances, which upstream stores with every attention."""
        constants = {}
        rows, columns = (side // 16 for side in pair("image_size", self.image_size))
        for n, (depth, stride, _, _) in enumerate(self._layers()):
            indices = distances(rows, columns, stride)
            constants |= {f"backbone.{n}.layers.{i}.0.pos_indices": indices for i in range(depth)}
            rows, columns = -(-rows // stride), -(-columns // stride)
        return constants


def _paper(dim, depth, heads, dim_key):
    sizes = dict(dim=dim, depth=depth, heads=heads, dim_key=dim_key, dim_value=2 * dim_key)
    return dict(image_size=224, mlp_mult=2, paper=True, **sizes)


PRESETS = {
    "tiny": dict(image_size=32, dim=(48, 64, 80), depth=1, heads=(2, 3, 4), mlp_mult=2, dim_key=16, dim_value=16),
    "128s": _paper((128, 256, 384), (2, 3, 4), (4, 6, 8), 16),
    "128": _paper((128, 256, 384), 4, (4, 8, 12), 16),
    "192": _paper((192, 288, 384), 4, (3, 5, 6), 32),
    "256": _paper((256, 384, 512), 4, (4, 6, 8), 32),
    "384": _paper((384, 512, 768), 4, (6, 9, 12), 32),
}
