"""MobileViT: a MobileNetV2 in whose last stages each pixel attends to pixels at the same place in other patches.

Source: Mehta and Rastegari 2021, arXiv:2110.02178. Upstream: vit_pytorch/mobile_vit.py.
Differs from upstream: `channels` as one number is that of the image, as in every model (upstream: 3), and `widths` are
upstream's eleven `channels`, which are also accepted as `channels`; any odd `kernel_size` works (upstream: only 3);
`num_classes=0` gives the last map, before the last convolution.
Differs from the paper: heads are always 8 wide; feed-forward blocks are four times as wide, not twice, except in the
first stage; no norm after a transformer; no bias in the head.
Axes: b batch, h rows, w columns, n tokens, d dim, k classes.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax import layers
from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import Rules, attention_rules, feed_forward_rules, sequential_rules
from vit_jax.frames.stages import check_windows
from vit_jax.layers import Attention, Blocks, Dense, FeedForward, stage_rates
from vit_jax.layers.check import at_least, expect, pair
from vit_jax.layers.shapes import Images, Maps, Output

ConvNorm = functools.partial(layers.ConvNorm, activation=jax.nn.silu)


class InvertedResidual(nn.Module):
    """Block of MobileNetV2 (arXiv:1801.04381): a 1x1 convolution that expands, a depthwise one, a 1x1 that narrows."""

    dim: int
    stride: int
    expansion: int | float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        y = x
        if self.expansion != 1:
            y = ConvNorm(int(x.shape[-1] * self.expansion), kernel=1, name="expand")(y, train=train)
        y = ConvNorm(y.shape[-1], 3, self.stride, groups=y.shape[-1], name="depthwise")(y, train=train)
        y = ConvNorm(self.dim, kernel=1, activation=None, name="project")(y, train=train)
        return x + y if self.stride == 1 and x.shape[-1] == self.dim else y


class MobileViTBlock(Blocks):
    """Convolutions for near pixels, then a transformer for distant ones: (b, h, w, d) to the same shape.

    Their output is concatenated with the input and merged by a convolution.
    """

    dim: int
    kernel_size: int
    patch_size: tuple[int, int]

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        (ph, pw), (_, rows, _, channels) = self.patch_size, x.shape
        y = ConvNorm(channels, self.kernel_size, name="conv1")(x, train=train)
        y = ConvNorm(self.dim, kernel=1, name="conv2")(y, train=train)
        y = super().__call__(rearrange(y, "b (h ph) (w pw) d -> (b ph pw) (h w) d", ph=ph, pw=pw), train=train)
        y = rearrange(y, "(b ph pw) (h w) d -> b (h ph) (w pw) d", ph=ph, pw=pw, h=rows // ph)
        y = ConvNorm(channels, kernel=1, name="conv3")(y, train=train)
        return ConvNorm(channels, self.kernel_size, name="conv4")(jnp.concatenate([y, x], axis=-1), train=train)


class MobileViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, h, w, d).

    Args:
        image_size: pixels, or (height, width).
        dims: width of a token in each of the three transformers.
        num_classes: number of classes; 0 for the last feature map.
        channels: channels of an image; a tuple is read as `widths`.
        expansion: hidden width of a MobileNetV2 block, as a multiple of its input.
        kernel_size: side of the convolutions in the transformer blocks; odd.
        patch_size: pixels of the map, or (height, width).
        depths: number of blocks in each of the three transformers.
        widths: eleven numbers of channels: of the stem; of the first three blocks, the third equal
            to the second; for each transformer, of the block before it and of its map, which are
            equal; of the last convolution.
        drop_path: rate of stochastic depth in the last transformer block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `widths` are not eleven numbers with these pairs equal, or patches do not
            tile the maps of an image.
    """

    image_size: int | Sequence[int]
    dims: Sequence[int]
    num_classes: int
    channels: int | Sequence[int] = 3
    expansion: int | float = 4
    kernel_size: int = 3
    patch_size: int | Sequence[int] = (2, 2)
    depths: Sequence[int] = (2, 4, 3)
    widths: Sequence[int] | None = None
    drop_path: float = 0.0

    def __post_init__(self):
        if isinstance(self.channels, Sequence):
            self.channels, self.widths = 3, tuple(self.channels)
        check_arguments(self)
        at_least(self, dims=1, depths=0, widths=1, kernel_size=1)
        for name in ("dims", "depths"):
            expect(self, name, len(getattr(self, name)) == 3, "three numbers, one for each transformer")
        widths, pairs = self.widths or (), "3rd as 4th, 5th as 6th, 7th as 8th, 9th as 10th"
        expect(self, "widths", len(widths) == 11 and widths[2:10:2] == widths[3:10:2], f"eleven numbers, {pairs}")
        least = min(widths)
        expect(self, "expansion", int(least * self.expansion) >= 1, f"at least 1 / {least}, the smallest of widths")
        expect(self, "kernel_size", self.kernel_size % 2 == 1, "an odd number")
        self._check_size(self.image_size)
        super().__post_init__()

    def _check_size(self, size: int | Sequence[int]) -> None:
        for side, patch in zip(pair("image_size", size), pair("patch_size", self.patch_size), strict=True):
            check_windows(side, (patch,) * 3, stride=8)

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        self._check_size(images.shape[1:3])
        widths, patch_size = self.widths, pair("patch_size", self.patch_size)
        x = ConvNorm(widths[0], kernel=3, stride=2, name="conv1")(images, train=train)
        for i, (width, stride) in enumerate(((widths[1], 1), (widths[2], 2), (widths[3], 1), (widths[3], 1))):
            x = InvertedResidual(width, stride, self.expansion, name=f"stem_{i}")(x, train=train)
        rates = stage_rates(self.drop_path, self.depths)
        for i, (dim, depth) in enumerate(zip(self.dims, self.depths, strict=True)):
            x = InvertedResidual(widths[4 + 2 * i], 2, self.expansion, name=f"reduce_{i}")(x, train=train)
            attention = functools.partial(Attention, heads=4, dim_head=8)
            feed_forward = functools.partial(FeedForward, (2 if i == 0 else 4) * dim, activation=jax.nn.silu)
            sizes = (dim, self.kernel_size, patch_size)
            block = MobileViTBlock(depth, attention, feed_forward, *sizes, drop_path=rates[i], name=f"mobile_{i}")
            x = block(x, train=train)
        if not self.num_classes:
            return x
        x = ConvNorm(widths[-1], kernel=1, name="last_conv")(x, train=train).mean(axis=(1, 2))
        return Dense(self.num_classes, use_bias=False, name="to_logits")(x)

    def torch_rules(self) -> Rules:
        """Upstream's inverted residual is one Sequential, shorter by three where nothing is widened."""
        first = 0 if self.expansion == 1 else 3
        return (
            *sequential_rules("expand", "conv", conv=0, norm=1),
            *sequential_rules("depthwise", "conv", conv=first, norm=first + 1),
            *sequential_rules("project", "conv", conv=first + 3, norm=first + 4),
            *sequential_rules("last_conv", "to_logits.0", conv=0, norm=1),
            ("to_logits", "to_logits.2"),
            ("conv", "0"),
            (r"stem_(\d+)", r"stem.\1"),
            (r"reduce_(\d+)", r"trunk.\1.0"),
            (r"mobile_(\d+)", r"trunk.\1.1"),
            *attention_rules(r"attn_(\d+)", r"transformer.layers.\1.0"),
            *feed_forward_rules(r"ff_(\d+)", r"transformer.layers.\1.1.net"),
            (r"(conv\d)/norm", r"\1.1"),
        )


_TINY = dict(image_size=32, widths=(8, 8, 16, 16, 24, 24, 32, 32, 40, 40, 80), expansion=2, patch_size=1)
PRESETS = {
    "tiny": _TINY | dict(dims=(32, 40, 48), depths=(1, 1, 1)),
    "xxs": dict(image_size=256, dims=(64, 80, 96), widths=(16, 16, 24, 24, 48, 48, 64, 64, 80, 80, 320), expansion=2),
    "xs": dict(image_size=256, dims=(96, 120, 144), widths=(16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 384)),
    "s": dict(image_size=256, dims=(144, 192, 240), widths=(16, 32, 64, 64, 96, 96, 128, 128, 160, 160, 640)),
}
