"""DenseNet: the input of every layer is the concatenated output of all earlier layers in its block.

Source: Huang et al. 2016, arXiv:1608.06993. torchvision: models/densenet.py.
Differs from torchvision: has no `memory_efficient`.
Axes: b batch, h rows, w columns, d features, k classes.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers import BatchNorm, Dense, max_pool
from vit_jax.layers.check import at_least, check_sides, expect
from vit_jax.layers.conv_norm import make_conv
from vit_jax.layers.shapes import Images, Maps, Output


class Layer(nn.Module):
    """`growth_rate` new features: a 1x1 convolution to `bn_size` times as many, then a 3x3 one, both pre-activated."""

    growth_rate: int
    bn_size: int
    drop_rate: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b h w e"]:
        x = jax.nn.relu(BatchNorm(name="norm1")(x, train=train))
        x = make_conv(self.bn_size * self.growth_rate, 1, name="conv1")(x)
        x = jax.nn.relu(BatchNorm(name="norm2")(x, train=train))
        x = make_conv(self.growth_rate, 3, name="conv2")(x)
        return nn.Dropout(self.drop_rate)(x, deterministic=not train)


class Transition(nn.Module):
    """Half as many features, in a map of half the height and width."""

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        x = jax.nn.relu(BatchNorm(name="norm")(x, train=train))
        return nn.avg_pool(make_conv(x.shape[-1] // 2, 1, name="conv")(x), (2, 2), (2, 2))


class DenseNet(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled features (b, d).

    Args:
        growth_rate: features that each layer adds.
        block_config: number of layers in each block.
        num_init_features: features of the stem.
        bn_size: hidden features of a layer, as a multiple of `growth_rate`.
        drop_rate: dropout rate on the output of each layer.
        num_classes: number of classes; 0 for features.
        channels: channels of an image.

    Raises:
        ValueError: for a `drop_rate` outside 0 to 1, or images that are too small for the last block.
    """

    growth_rate: int = 32
    block_config: tuple[int, ...] = (6, 12, 24, 16)
    num_init_features: int = 64
    bn_size: int = 4
    drop_rate: float = 0.0
    num_classes: int = 1000
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        at_least(self, growth_rate=1, block_config=1, num_init_features=1, bn_size=1)
        expect(self, "drop_rate", 0 <= self.drop_rate <= 1, "0 to 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        last = 2 ** (len(self.block_config) - 1)  # least height and width of the stem's output
        check_sides("image_size", images.shape[1:3], lambda side: side > 4 * (last - 1))
        x = make_conv(self.num_init_features, 7, stride=2, name="features_conv0")(images)
        x = jax.nn.relu(BatchNorm(name="features_norm0")(x, train=train))
        x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, depth in enumerate(self.block_config, 1):
            if i > 1:
                x = Transition(name=f"features_transition{i - 1}")(x, train=train)
            for j in range(1, depth + 1):
                name = f"features_denseblock{i}_denselayer{j}"
                new = Layer(self.growth_rate, self.bn_size, self.drop_rate, name=name)(x, train=train)
                x = jnp.concatenate([x, new], axis=-1)
        x = jax.nn.relu(BatchNorm(name="features_norm5")(x, train=train)).mean(axis=(1, 2))
        return Dense(self.num_classes, name="classifier")(x) if self.num_classes else x

    torch_rules = (
        (r"features_(denseblock\d+)_(\w+)", r"features.\1.\2"),
        (r"features_(\w+)", r"features.\1"),
    )
    # The published files are from before names of modules lost their dots.
    torch_former_keys = ((r"(.*\.denselayer\d+\.(?:norm|conv))\.([12]\.\w+)", r"\1\2"),)


PRESETS = {
    "densenet121": dict(block_config=(6, 12, 24, 16)),
    "densenet161": dict(block_config=(6, 12, 36, 24), growth_rate=48, num_init_features=96),
    "densenet169": dict(block_config=(6, 12, 32, 32)),
    "densenet201": dict(block_config=(6, 12, 48, 32)),
}
