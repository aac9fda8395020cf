"""GoogLeNet, the first Inception network: parallel branches with different kernel sizes.

Source: Szegedy et al. 2014, arXiv:1409.4842. torchvision: models/googlenet.py.
Differs from torchvision: the weights of auxiliary heads are kept, but the heads are never computed; there is no
`transform_input`, since `weights.py` has the normalisation that the published weights expect.
Differs from the paper: as in torchvision, every convolution has a batch norm, and 3x3 kernels replace 5x5 ones.
Axes: b batch, h rows, w columns, d features, k classes.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers import Dense, max_pool
from vit_jax.layers.check import check_sides
from vit_jax.layers.conv_norm import ConvNorm
from vit_jax.layers.shapes import Images, Maps, Output
from vit_jax.pretrained.torchvision.pools import max_pool_ceil

conv_norm = functools.partial(ConvNorm, epsilon=1e-3)


class Inception(nn.Module):
    """Four branches: a 1x1 convolution; two 3x3 convolutions after 1x1 ones; and a 1x1 convolution after a 3x3 pool."""

    widths: tuple[int, tuple[int, int], tuple[int, int], int]

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b h w e"]:
        point, *reduced, pooled = self.widths
        outputs = [conv_norm(point, 1, name="branch1")(x, train=train)]
        for i, (narrow, wide) in enumerate(reduced, 2):
            y = conv_norm(narrow, 1, name=f"branch{i}_0")(x, train=train)
            outputs.append(conv_norm(wide, 3, name=f"branch{i}_1")(y, train=train))
        y = max_pool(x, (3, 3), padding="SAME")
        outputs.append(conv_norm(pooled, 1, name="branch4_1")(y, train=train))
        return jnp.concatenate(outputs, axis=-1)


class AuxiliaryHead(nn.Module):
    """An auxiliary classifier on an intermediate map, pooled to 4x4."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b 4 4 d"]) -> Float[Array, "b k"]:
        x = conv_norm(128, 1, name="conv")(x)
        x = jax.nn.relu(Dense(1024, name="fc1")(x.reshape(x.shape[0], -1)))
        return Dense(self.num_classes, name="fc2")(x)


# For each stage, the kernel size of the pool before it and the widths of its blocks.
STAGES = {
    3: (3, {"a": (64, (96, 128), (16, 32), 32), "b": (128, (128, 192), (32, 96), 64)}),
    4: (
        3,
        {
            "a": (192, (96, 208), (16, 48), 64),
            "b": (160, (112, 224), (24, 64), 64),
            "c": (128, (128, 256), (24, 64), 64),
            "d": (112, (144, 288), (32, 64), 64),
            "e": (256, (160, 320), (32, 128), 128),
        },
    ),
    5: (2, {"a": (256, (160, 320), (32, 128), 128), "b": (384, (192, 384), (48, 128), 128)}),
}


class GoogLeNet(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled features (b, d).

    With `aux_logits` there are weights for the auxiliary heads, as in published files. Raises ValueError for images
    with less than 15 pixels in height or width.
    """

    num_classes: int = 1000
    aux_logits: bool = True
    dropout: float = 0.2
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        check_sides("image_size", images.shape[1:3], lambda side: side >= 15)
        x = conv_norm(64, 7, stride=2, name="conv1")(images, train=train)
        x = conv_norm(64, 1, name="conv2")(max_pool_ceil(x, 3, 2), train=train)
        x = conv_norm(192, 3, name="conv3")(x, train=train)
        for stage, (window, blocks) in STAGES.items():
            x = max_pool_ceil(x, window, 2)
            for letter, widths in blocks.items():
                x = Inception(widths, name=f"inception{stage}{letter}")(x, train=train)
        if self.is_initializing() and self.aux_logits and self.num_classes:
            for name, features in (("aux1", 512), ("aux2", 528)):
                AuxiliaryHead(self.num_classes, name=name)(jnp.zeros((1, 4, 4, features), images.dtype))
        x = nn.Dropout(self.dropout)(x.mean(axis=(1, 2)), deterministic=not train)
        return Dense(self.num_classes, name="fc")(x) if self.num_classes else x

    torch_rules = ((r"branch(\d)_(\d)", r"branch\1.\2"), ("norm", "bn"))


PRESETS = {"googlenet": {}}
