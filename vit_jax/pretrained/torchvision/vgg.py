"""VGG: stacks of 3x3 convolutions and max pools, then three linear layers.

Source: Simonyan and Zisserman 2014, arXiv:1409.1556; with batch norm: Ioffe and Szegedy 2015, arXiv:1502.03167.
torchvision: models/vgg.py.
Axes: b batch, h rows, w columns, d features, k classes.
"""

import jax
from einops import rearrange
from flax import linen as nn

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers import BatchNorm, Dense, max_pool
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.conv_norm import make_conv
from vit_jax.layers.shapes import Images, Output
from vit_jax.pretrained.torchvision.pools import adaptive_avg_pool


class VGG(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the input of the last layer (b, 4096).

    `layers` is the number of convolutions in each of the five stages, whose widths are 64, 128, 256, 512 and 512.
    Raises ValueError for another number of stages.
    """

    layers: tuple[int, ...]
    batch_norm: bool = False
    num_classes: int = 1000
    dropout: float = 0.5
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        at_least(self, layers=1)
        expect(self, "layers", len(self.layers) == 5, "five numbers, one for each stage")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        x, number = images, 0  # index in torchvision's Sequential, which includes ReLUs and pools
        for depth, width in zip(self.layers, (64, 128, 256, 512, 512), strict=True):
            for _ in range(depth):
                x = make_conv(width, 3, use_bias=True, name=f"features_{number}")(x)
                if self.batch_norm:
                    x = BatchNorm(name=f"features_{number + 1}")(x, train=train)
                x = jax.nn.relu(x)
                number += 3 if self.batch_norm else 2
            x = max_pool(x, (2, 2), (2, 2))
            number += 1
        x = rearrange(adaptive_avg_pool(x, 7), "b h w d -> b (d h w)")
        x = jax.nn.relu(Dense(4096, name="classifier_0")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = jax.nn.relu(Dense(4096, name="classifier_3")(x))
        if not self.num_classes:
            return x
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return Dense(self.num_classes, name="classifier_6")(x)

    torch_rules = ((r"(features|classifier)_(\d+)", r"\1.\2"),)


_LAYERS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
PRESETS = {name: dict(layers=layers) for name, layers in _LAYERS.items()}
PRESETS |= {f"{name}_bn": dict(layers=layers, batch_norm=True) for name, layers in _LAYERS.items()}
