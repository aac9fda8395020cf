"""ConvNeXt: a convolutional network with the stages and block design of a Swin transformer.

Source: Liu et al. 2022, arXiv:2201.03545. torchvision: models/convnext.py.
Axes: b batch, h rows, w columns, d features, k classes.
"""

import functools

import numpy as np
from flax import linen as nn

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import sequential_rules
from vit_jax.layers import Dense, DepthwiseConv, FeedForward, LayerNorm, sow_block
from vit_jax.layers.check import at_least, check_sides, expect
from vit_jax.layers.shapes import Images, Maps, Output

make_norm = functools.partial(LayerNorm, 1e-6)


class Block(nn.Module):
    """Depthwise convolution and feed-forward with a learned scale for each feature, and a residual connection."""

    layer_scale: float
    stochastic_depth_prob: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        dim = x.shape[-1]
        scale = self.param("layer_scale", nn.initializers.constant(self.layer_scale), (dim, 1, 1))
        y = DepthwiseConv(7, name="depthwise")(x)
        y = FeedForward(4 * dim, norm=make_norm, name="ff")(y, train=train) * scale.reshape(1, 1, 1, dim)
        return x + nn.Dropout(self.stochastic_depth_prob, broadcast_dims=(1, 2, 3))(y, deterministic=not train)


class ConvNeXt(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled, normalised features (b, d).

    Args:
        dims: width of each stage.
        depths: number of blocks of each stage.
        stochastic_depth_prob: probability that the last block is skipped in training; it rises linearly from 0 at the
            first block.
        layer_scale: initial value of the scale of each block's features.
        num_classes: number of classes; 0 for features.
        channels: channels of an image.

    Raises:
        ValueError: for `dims` and `depths` of different lengths, a probability outside 0 to 1, or images that are too
            small for the last stage.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    stochastic_depth_prob: float = 0.0
    layer_scale: float = 1e-6
    num_classes: int = 1000
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        at_least(self, dims=1, depths=1)
        expect(self, "depths", len(self.depths) == len(self.dims), f"one number for each of dims={self.dims}")
        expect(self, "stochastic_depth_prob", 0 <= self.stochastic_depth_prob <= 1, "0 to 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        check_sides("image_size", images.shape[1:3], lambda side: side >= 2 * 2 ** len(self.dims))
        x = nn.Conv(self.dims[0], (4, 4), strides=4, padding="VALID", name="features_0_0")(images)
        x = make_norm(name="features_0_1")(x)
        probs = iter(np.linspace(0, self.stochastic_depth_prob, sum(self.depths)).tolist())
        for i, (dim, depth) in enumerate(zip(self.dims, self.depths, strict=True)):
            if i:
                x = make_norm(name=f"features_{2 * i}_0")(x)
                x = nn.Conv(dim, (2, 2), strides=2, padding="VALID", name=f"features_{2 * i}_1")(x)
            for j in range(depth):
                block = Block(self.layer_scale, next(probs), name=f"features_{2 * i + 1}_{j}")
                x = sow_block(self, block(x, train=train))
        x = make_norm(name="norm")(x.mean(axis=(1, 2)))
        return Dense(self.num_classes, name="head")(x) if self.num_classes else x

    torch_rules = (
        (r"features_(\d)_(\d+)", r"features.\1.\2"),
        ("depthwise", "block.0"),
        *sequential_rules("ff", "block", norm=2, fc1=3, fc2=5),
        ("norm", "classifier.0"),
        ("head", "classifier.2"),
    )


def _sizes(width, third_depth, stochastic_depth_prob):
    dims = tuple(width * 2**i for i in range(4))
    return dict(dims=dims, depths=(3, 3, third_depth, 3), stochastic_depth_prob=stochastic_depth_prob)


PRESETS = {
    "convnext_tiny": _sizes(96, 9, 0.1),
    "convnext_small": _sizes(96, 27, 0.4),
    "convnext_base": _sizes(128, 27, 0.5),
    "convnext_large": _sizes(192, 27, 0.5),
}
