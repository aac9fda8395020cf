"""ShuffleNet V2: every block transforms half of the channels, then interleaves the channels of both halves.

Source: Ma et al. 2018, arXiv:1807.11164. torchvision: models/shufflenetv2.py.
Axes: b batch, h rows, w columns, d features, k classes.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import sequential_rules
from vit_jax.layers import ConvNorm, Dense, max_pool
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.shapes import Images, Maps, Output


class Block(nn.Module):
    """Two branches whose channels are interleaved. With `stride` 1 the first branch is half of the input, unchanged."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        width = self.features // 2
        if self.stride > 1:
            kept = self._depthwise(x.shape[-1], "branch1_depthwise")(x, train=train)
            kept = ConvNorm(width, 1, name="branch1_out")(kept, train=train)
        else:
            kept, x = jnp.split(x, 2, axis=-1)
        x = ConvNorm(width, 1, name="branch2_in")(x, train=train)
        x = self._depthwise(width, "branch2_depthwise")(x, train=train)
        x = ConvNorm(width, 1, name="branch2_out")(x, train=train)
        return rearrange([kept, x], "branch b h w d -> b h w (d branch)")

    def _depthwise(self, features: int, name: str) -> ConvNorm:
        return ConvNorm(features, 3, self.stride, features, activation=None, name=name)


class ShuffleNetV2(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled features (b, d).

    Args:
        stages_out_channels: features of the stem, of each stage, and of the last convolution.
        stages_repeats: number of blocks of each stage.
        num_classes: number of classes; 0 for features.
        channels: channels of an image.

    Raises:
        ValueError: for another number of `stages_out_channels`, or an odd number of features of a stage.
    """

    stages_out_channels: tuple[int, ...]
    stages_repeats: tuple[int, ...] = (4, 8, 4)
    num_classes: int = 1000
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        at_least(self, stages_out_channels=1, stages_repeats=1)
        count = len(self.stages_repeats) + 2
        expect(self, "stages_out_channels", len(self.stages_out_channels) == count, f"{count} numbers")
        even = not any(width % 2 for width in self.stages_out_channels[1:-1])
        expect(self, "stages_out_channels", even, "even numbers between the first and the last")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        stem, *widths, features = self.stages_out_channels
        x = ConvNorm(stem, 3, stride=2, name="conv1")(images, train=train)
        x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, (width, repeats) in enumerate(zip(widths, self.stages_repeats, strict=True), 2):
            for j in range(repeats):
                x = Block(width, 1 if j else 2, name=f"stage{i}_{j}")(x, train=train)
        x = ConvNorm(features, 1, name="conv5")(x, train=train).mean(axis=(1, 2))
        return Dense(self.num_classes, name="fc")(x) if self.num_classes else x

    torch_rules = (
        (r"stage(\d)_(\d+)", r"stage\1.\2"),
        *sequential_rules("branch1_depthwise", "branch1", conv=0, norm=1),
        *sequential_rules("branch1_out", "branch1", conv=2, norm=3),
        *sequential_rules("branch2_in", "branch2", conv=0, norm=1),
        *sequential_rules("branch2_depthwise", "branch2", conv=3, norm=4),
        *sequential_rules("branch2_out", "branch2", conv=5, norm=6),
        *sequential_rules(r"conv(\d)", r"conv\1", conv=0, norm=1),
    )


PRESETS = {
    "shufflenet_v2_x0_5": dict(stages_out_channels=(24, 48, 96, 192, 1024)),
    "shufflenet_v2_x1_0": dict(stages_out_channels=(24, 116, 232, 464, 1024)),
    "shufflenet_v2_x1_5": dict(stages_out_channels=(24, 176, 352, 704, 1024)),
    "shufflenet_v2_x2_0": dict(stages_out_channels=(24, 244, 488, 976, 2048)),
}
