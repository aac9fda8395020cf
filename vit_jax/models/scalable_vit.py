"""ScalableViT: attention over a reduced map, and attention within windows plus a convolution of all values.

Derives from the frame `MapViT` and defines how the map is computed.

Source: Yang et al. 2022, arXiv:2203.10790. Upstream: vit_pytorch/scalable_vit.py.
Differs from upstream: `image_size` may be given, and is then checked at construction; `num_classes=0` gives the last
map.
Differs from the paper: windows attend after both feed-forward blocks, not between them; one convolution reduces keys
and values, without a norm; the convolution of the local interaction is not depthwise; one linear map as head.
Axes: b batch (times windows), x rows, y columns, h heads, i query, j key, d dim, k classes.
"""

import functools
from collections.abc import Callable

from einops import rearrange
from flax import linen as nn

from vit_jax.frames import MapViT
from vit_jax.frames.rules import attention_rules, feed_forward_rules, sequential_rules
from vit_jax.frames.stages import check_depth, check_windows, per_stage
from vit_jax.layers import (
    ChannelNorm,
    ConvFeedForward,
    DepthwiseConv,
    PointwiseConv,
    attend,
    drop_paths,
    sow_block,
    stage_rates,
)
from vit_jax.layers.check import at_least, pair
from vit_jax.layers.shapes import Images, Maps


class ScalableSelfAttention(nn.Module):
    """Attention of every pixel to a map that is `reduction` times smaller along both sides."""

    heads: int
    dim_key: int
    dim_value: int
    reduction: int
    dropout: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        x, window = ChannelNorm(name="norm")(x), (self.reduction, self.reduction)
        reduce = dict(strides=window, padding=0, use_bias=False)
        q = PointwiseConv(self.heads * self.dim_key, use_bias=False, name="to_q")(x)
        k = nn.Conv(self.heads * self.dim_key, window, name="to_k", **reduce)(x)
        v = nn.Conv(self.heads * self.dim_value, window, name="to_v", **reduce)(x)
        q, k, v = (rearrange(t, "b x y (h d) -> b h (x y) d", h=self.heads) for t in (q, k, v))
        out = attend(self, q, k, v, dropout=self.dropout, train=train)
        out = out.reshape(*x.shape[:3], out.shape[-1])
        return nn.Dropout(self.dropout)(PointwiseConv(x.shape[-1], name="to_out")(out), deterministic=not train)


class InteractiveWindowedSelfAttention(nn.Module):
    """Attention within windows, plus a convolution of all values.

    The window is the whole map if `window_size` is None.
    """

    heads: int
    dim_key: int
    dim_value: int
    window_size: int | None
    dropout: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        w1, w2 = self.window_size or x.shape[1], self.window_size or x.shape[2]
        x = ChannelNorm(name="norm")(x)
        q = PointwiseConv(self.heads * self.dim_key, use_bias=False, name="to_q")(x)
        k = PointwiseConv(self.heads * self.dim_key, use_bias=False, name="to_k")(x)
        v = PointwiseConv(self.heads * self.dim_value, use_bias=False, name="to_v")(x)
        local = nn.Conv(v.shape[-1], (3, 3), padding=1, name="local_interactive_module")(v)

        windows = "b (x w1) (y w2) (h d) -> b x y h (w1 w2) d"
        q, k, v = (rearrange(t, windows, h=self.heads, w1=w1, w2=w2) for t in (q, k, v))
        out = attend(self, q, k, v, dropout=self.dropout, train=train)
        out = local + rearrange(out, "b x y (w1 w2) d -> b (x w1) (y w2) d", w1=w1)
        out = PointwiseConv(x.shape[-1], name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class Stage(nn.Module):
    """`depth` blocks with both attentions; `ssa`, `iwsa` and `feed_forward` are factories of their modules."""

    depth: int
    ssa: Callable[..., nn.Module]
    iwsa: Callable[..., nn.Module]
    feed_forward: Callable[..., nn.Module]
    drop_path: tuple[float, ...]

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        for i, drop_path in enumerate(drop_paths(self, self.drop_path, self.depth, train)):
            x = x + drop_path(self.ssa(name=f"ssa_{i}")(x, train=train))
            x = x + drop_path(self.feed_forward(name=f"ff1_{i}")(x, train=train))
            if i == 0:
                x = x + DepthwiseConv(kernel=3, name="positions")(x)
            x = x + drop_path(self.feed_forward(name=f"ff2_{i}")(x, train=train))
            x = x + drop_path(self.iwsa(name=f"iwsa_{i}")(x, train=train))
            sow_block(self, x)
        return x


SSA = ("heads", "ssa_dim_key", "ssa_dim_value", "reduction_factor")
IWSA = ("heads", "iwsa_dim_key", "iwsa_dim_value", "window_size")


class ScalableViT(MapViT, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, h, w, d).

    Args:
        num_classes: number of classes; 0 for the last feature map.
        channels: channels of an image.
        image_size: pixels, or (height, width); optional, only checked at construction.
        dim: width of a pixel of the map in the first stage; it doubles from stage to stage.
        depth: number of blocks in each stage.
        heads: attention heads, one number or one per stage.
        reduction_factor: how many times smaller the sides of the map of keys and values are, one
            number or one per stage.
        window_size: side of a window, in pixels of the map, one number or one per stage; None for
            the whole map.
        iwsa_dim_key: width of a head's queries and keys in windows, one number or one per stage.
        iwsa_dim_value: width of a head's values in windows, one number or one per stage.
        ssa_dim_key: width of a head's queries and keys in global attention, one number or one per
            stage.
        ssa_dim_value: width of a head's values in global attention, one number or one per stage.
        ff_expansion_factor: hidden width of each feed-forward, as a multiple of its input.
        dropout: rate within the blocks.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if windows do not tile the maps of an image, or a map is too small for its
            `reduction_factor`.
    """

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
    dropout: float = 0.0

    def check(self):
        check_depth(self)
        at_least(self, ff_expansion_factor=1)
        self._stages(*SSA, *IWSA)

    def _stages(self, *names: str) -> list[tuple[int | None, ...]]:
        """Values of the arguments `names`, for each stage."""
        return list(zip(*(per_stage(self, name, len(self.depth)) for name in names), strict=True))

    def check_size(self, size, name="image_size"):
        check_windows(size, [window or 1 for (window,) in self._stages("window_size")])
        reductions = self._stages("reduction_factor")
        smallest = max(4 * 2**i * (reduction - 1) + 1 for i, (reduction,) in enumerate(reductions))
        if min(pair("image_size", size)) < smallest:
            factor = f"reduction_factor={self.reduction_factor!r}"
            raise ValueError(f"image_size={size!r}: expected at least {smallest}, for {factor} to leave a pixel")

    def maps(self, images: Images, *, train: bool) -> Maps:
        x = nn.Conv(self.dim, (7, 7), strides=(4, 4), padding=3, name="to_patches")(images)
        stages = zip(self.depth, self._stages(*SSA), self._stages(*IWSA), strict=True)
        rates = stage_rates(self.drop_path, self.depth)
        for i, (depth, ssa, iwsa) in enumerate(stages):
            dim = 2**i * self.dim
            if i > 0:
                x = ChannelNorm(name=f"norm_{i - 1}")(x)
                x = nn.Conv(dim, (3, 3), strides=(2, 2), padding=1, name=f"downsample_{i - 1}")(x)
            ssa = functools.partial(ScalableSelfAttention, *ssa, self.dropout)
            iwsa = functools.partial(InteractiveWindowedSelfAttention, *iwsa, self.dropout)
            feed_forward = functools.partial(ConvFeedForward, self.ff_expansion_factor * dim, self.dropout)
            x = Stage(depth, ssa, iwsa, feed_forward, rates[i], name=f"stage_{i}")(x, train=train)
        return x

    torch_rules = (
        (r"stage_(\d+)", r"layers.\1.0"),
        (r"norm_(\d+)", r"layers.\1.0.norm"),
        (r"downsample_(\d+)", r"layers.\1.1.conv"),
        *attention_rules(r"ssa_(\d+)", r"layers.\1.0"),
        *feed_forward_rules(r"ff1_(\d+)", r"layers.\1.1.net"),
        ("positions", "layers.0.2.proj"),
        *feed_forward_rules(r"ff2_(\d+)", r"layers.\1.3.net"),
        *attention_rules(r"iwsa_(\d+)", r"layers.\1.4"),
        *sequential_rules("head", "mlp_head", norm=1, fc=2),
    )


def _paper(dim, heads, depth, ssa_dim_key):
    stages = dict(heads=(heads, 2 * heads, 4 * heads, 8 * heads), depth=depth, ssa_dim_key=ssa_dim_key)
    return dict(image_size=224, dim=dim, reduction_factor=(8, 4, 2, 1), window_size=7, **stages)


_TINY = dict(image_size=32, dim=24, depth=(1, 1), heads=(2, 4), reduction_factor=(2, 1), window_size=4)
PRESETS = {
    "tiny": _TINY | dict(ssa_dim_key=12, ssa_dim_value=12, iwsa_dim_key=12, iwsa_dim_value=12),
    "s": _paper(64, 2, (1, 1, 10, 1), (40, 40, 40, 32)),
    "b": _paper(96, 3, (1, 1, 7, 3), (64, 40, 40, 32)),
    "l": _paper(128, 4, (1, 3, 6, 2), (8, 16, 32, 32)),
}
