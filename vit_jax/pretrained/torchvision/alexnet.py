"""AlexNet: five convolutions and three linear layers.

Source: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997.
torchvision: models/alexnet.py.
Differs from the paper: as in torchvision, the fourth convolution has 256 features (paper: 384).
Axes: b batch, h rows, w columns, d features, k classes.
"""

import jax
from einops import rearrange
from flax import linen as nn

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers import Dense, max_pool
from vit_jax.layers.conv_norm import make_conv
from vit_jax.layers.shapes import Images, Output
from vit_jax.pretrained.torchvision.pools import adaptive_avg_pool


class AlexNet(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last layer's input (b, 4096)."""

    num_classes: int = 1000
    dropout: float = 0.5
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        x = nn.Conv(64, (11, 11), (4, 4), padding=2, name="features_0")(images)
        x = max_pool(jax.nn.relu(x), (3, 3), (2, 2))
        x = jax.nn.relu(make_conv(192, 5, use_bias=True, name="features_3")(x))
        x = max_pool(x, (3, 3), (2, 2))
        for number, width in ((6, 384), (8, 256), (10, 256)):
            x = jax.nn.relu(make_conv(width, 3, use_bias=True, name=f"features_{number}")(x))
        x = max_pool(x, (3, 3), (2, 2))
        x = rearrange(adaptive_avg_pool(x, 6), "b h w d -> b (d h w)")
        for number in (1, 4):
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
            x = jax.nn.relu(Dense(4096, name=f"classifier_{number}")(x))
        return Dense(self.num_classes, name="classifier_6")(x) if self.num_classes else x

    torch_rules = ((r"(features|classifier)_(\d+)", r"\1.\2"),)


PRESETS = {"alexnet": {}}
