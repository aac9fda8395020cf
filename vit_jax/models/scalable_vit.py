"""ScalableViT: global attention over a reduced map, and attention in windows that see their neighbours' values.

Source: Yang et al. 2022, arXiv:2203.10790. Upstream: vit_pytorch/scalable_vit.py.
Differs from upstream: `image_size` may be given, to be checked at construction; `num_classes=0` gives the last map.
Differs from the paper: windows attend behind both feed-forward blocks, not between them; keys and values are reduced by
one convolution, without a norm; that of the local interaction is not depthwise; a plain linear head.
Axes: b batch (times windows), x rows, y columns, h heads, i query, j key, d dim, k classes.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import ChannelNorm, ConvFeedForward, DepthwiseConv, NormHead, PointwiseConv, softmax
from vit_jax.layers.check import at_least, check_arguments, check_images, pair
from vit_jax.layers.rules import feed_forward_rules
from vit_jax.layers.stages import check_depth, check_windows, per_stage


class ScalableSelfAttention(nn.Module):
    """Attention of every pixel to a map whose sides are `reduction` times shorter."""

    heads: int
    dim_key: int
    dim_value: int
    reduction: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b x y d"], *, train: bool = False) -> Float[Array, "b x y d"]:
        dim, rows, window = x.shape[-1], x.shape[1], (self.reduction, self.reduction)
        reduce = dict(strides=window, padding=0, use_bias=False)
        x = ChannelNorm(name="norm")(x)
        q = PointwiseConv(self.heads * self.dim_key, use_bias=False, name="to_q")(x)
        k = nn.Conv(self.heads * self.dim_key, window, name="to_k", **reduce)(x)
        v = nn.Conv(self.heads * self.dim_value, window, name="to_v", **reduce)(x)
        q, k, v = (rearrange(t, "b x y (h d) -> b h (x y) d", h=self.heads) for t in (q, k, v))
        out = attend(self, q, k, v, self.dropout, train=train)
        out = PointwiseConv(dim, name="to_out")(rearrange(out, "b h (x y) d -> b x y (h d)", x=rows))
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class InteractiveWindowedSelfAttention(nn.Module):
    """Attention within windows, the whole map where `window_size` is None, plus a convolution of all values."""

    heads: int
    dim_key: int
    dim_value: int
    window_size: int | None
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b x y d"], *, train: bool = False) -> Float[Array, "b x y d"]:
        _, height, width, dim = x.shape
        w1, w2 = self.window_size or height, self.window_size or width
        x = ChannelNorm(name="norm")(x)
        q = PointwiseConv(self.heads * self.dim_key, use_bias=False, name="to_q")(x)
        k = PointwiseConv(self.heads * self.dim_key, use_bias=False, name="to_k")(x)
        v = PointwiseConv(self.heads * self.dim_value, use_bias=False, name="to_v")(x)
        local = nn.Conv(v.shape[-1], (3, 3), padding=1, name="local_interactive_module")(v)

        windows = "(b x y) h (w1 w2) d"
        q, k, v = (rearrange(t, f"b (x w1) (y w2) (h d) -> {windows}", h=self.heads, w1=w1, w2=w2) for t in (q, k, v))
        out = attend(self, q, k, v, self.dropout, train=train)
        out = rearrange(out, f"{windows} -> b (x w1) (y w2) (h d)", x=height // w1, y=width // w2, w1=w1)
        out = PointwiseConv(dim, name="to_out")(out + local)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


def attend(module: nn.Module, q, k, v, dropout: float, *, train: bool) -> Float[Array, "b h i d"]:
    """Softmax attention of `module`, which records its map."""
    attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5)
    module.sow("intermediates", "attn", attn)
    attn = nn.Dropout(dropout)(attn, deterministic=not train)
    return jnp.einsum("bhij,bhjd->bhid", attn, v)


class Stage(nn.Module):
    """`depth` blocks of both kinds of attention; `ssa` and `iwsa` are their arguments between heads and dropout."""

    depth: int
    heads: int
    ssa: tuple[int, int, int]
    iwsa: tuple[int, int, int | None]
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b x y d"], *, train: bool = False) -> Float[Array, "b x y d"]:
        for i in range(self.depth):
            ssa = ScalableSelfAttention(self.heads, *self.ssa, self.dropout, name=f"ssa_{i}")
            iwsa = InteractiveWindowedSelfAttention(self.heads, *self.iwsa, self.dropout, name=f"iwsa_{i}")
            x = x + ssa(x, train=train)
            x = x + ConvFeedForward(self.mlp_dim, self.dropout, name=f"ff1_{i}")(x, train=train)
            if i == 0:
                x = x + DepthwiseConv(kernel=3, name="positions")(x)
            x = x + ConvFeedForward(self.mlp_dim, self.dropout, name=f"ff2_{i}")(x, train=train)
            x = x + iwsa(x, train=train)
        return x


class ScalableViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last map (b, h, w, d).

    `depth` has one number per stage, and the width doubles from each to the next; `heads`, `reduction_factor`,
    `window_size` and the widths of keys and values, per head, are one number, or one per stage.
    Raises ValueError when windows do not tile the maps of an image, or a reduction leaves nothing of one.
    """

    num_classes: int
    dim: int
    depth: tuple[int, ...]
    heads: int | tuple[int, ...]
    reduction_factor: int | tuple[int, ...]
    window_size: int | tuple[int | None, ...] | None = None
    iwsa_dim_key: int | tuple[int, ...] = 32
    iwsa_dim_value: int | tuple[int, ...] = 32
    ssa_dim_key: int | tuple[int, ...] = 32
    ssa_dim_value: int | tuple[int, ...] = 32
    ff_expansion_factor: int = 4
    channels: int = 3
    dropout: float = 0.0
    image_size: int | tuple[int, int] | None = None

    def __post_init__(self):
        check_arguments(self)
        check_depth(self)
        at_least(self, ff_expansion_factor=1)
        self._stages()
        if self.image_size is not None:
            self._check_size(self.image_size)
        super().__post_init__()

    def _stages(self) -> list[tuple]:
        """Of each stage the heads, and what both kinds of attention take besides."""
        names = ("heads", "ssa_dim_key", "ssa_dim_value", "reduction_factor")
        names += ("iwsa_dim_key", "iwsa_dim_value", "window_size")
        values = zip(*(per_stage(self, name, len(self.depth)) for name in names), strict=True)
        return [(heads, (*sizes[:3],), (*sizes[3:],)) for heads, *sizes in values]

    def _check_size(self, size: int | tuple[int, int]) -> None:
        stages = self._stages()
        check_windows(size, [window or 1 for _, _, (_, _, window) in stages])
        smallest = max(4 * 2**i * (reduction - 1) + 1 for i, (_, (_, _, reduction), _) in enumerate(stages))
        if min(pair("image_size", size)) < smallest:
            factor = f"reduction_factor={self.reduction_factor!r}"
            raise ValueError(f"image_size={size!r}: expected at least {smallest}, for {factor} to leave a pixel")

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        check_images(images, self.channels)
        self._check_size(images.shape[1:3])
        x = nn.Conv(self.dim, (7, 7), strides=(4, 4), padding=3, name="to_patches")(images)
        for i, (depth, stage) in enumerate(zip(self.depth, self._stages(), strict=True)):
            dim = 2**i * self.dim
            if i > 0:
                x = ChannelNorm(name=f"norm_{i - 1}")(x)
                x = nn.Conv(dim, (3, 3), strides=(2, 2), padding=1, name=f"downsample_{i - 1}")(x)
            stage = Stage(depth, *stage, self.ff_expansion_factor * dim, self.dropout, name=f"stage_{i}")
            x = stage(x, train=train)
        return NormHead(self.num_classes, name="mlp_head")(x.mean(axis=(1, 2))) if self.num_classes else x


def _paper(dim, heads, depth, ssa_dim_key):
    stages = dict(heads=(heads, 2 * heads, 4 * heads, 8 * heads), depth=depth, ssa_dim_key=ssa_dim_key)
    return dict(image_size=224, dim=dim, reduction_factor=(8, 4, 2, 1), window_size=7, **stages)


PRESETS = {
    "tiny": dict(
        image_size=32,
        dim=24,
        depth=(1, 1),
        heads=(2, 4),
        reduction_factor=(2, 1),
        window_size=4,
        ssa_dim_key=12,
        ssa_dim_value=12,
        iwsa_dim_key=12,
        iwsa_dim_value=12,
    ),
    "s": _paper(64, 2, (1, 1, 10, 1), (40, 40, 40, 32)),
    "b": _paper(96, 3, (1, 1, 7, 3), (64, 40, 40, 32)),
    "l": _paper(128, 4, (1, 3, 6, 2), (8, 16, 32, 32)),
}

TORCH_RULES = (
    (r"stage_(\d+)", r"layers.\1.0"),
    (r"norm_(\d+)", r"layers.\1.0.norm"),
    (r"downsample_(\d+)", r"layers.\1.1.conv"),
    (r"ssa_(\d+)/to_out", r"layers.\1.0.to_out.0"),
    (r"ssa_(\d+)", r"layers.\1.0"),
    *feed_forward_rules(r"ff1_(\d+)", r"layers.\1.1.net"),
    ("positions", "layers.0.2.proj"),
    *feed_forward_rules(r"ff2_(\d+)", r"layers.\1.3.net"),
    (r"iwsa_(\d+)/to_out", r"layers.\1.4.to_out.0"),
    (r"iwsa_(\d+)", r"layers.\1.4"),
    ("mlp_head/norm", "mlp_head.1"),
    ("mlp_head/fc", "mlp_head.2"),
)
