"""SqueezeNet: 1x1 convolutions reduce the number of channels before 3x3 convolutions. There are no norms.

Source: Iandola et al. 2016, arXiv:1602.07360. torchvision: models/squeezenet.py.
Logits are never negative, since they are means over pixels after a ReLU.
Axes: b batch, h rows, w columns, d features, k classes.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers.check import check_sides, one_of
from vit_jax.layers.shapes import Images, Maps, Output
from vit_jax.pretrained.torchvision.pools import max_pool_ceil

make_conv = functools.partial(nn.Conv, kernel_init=nn.initializers.he_uniform())  # no norms rescale features

# For each version: features and kernel size of the first convolution, and the indices of torchvision's pools.
VERSIONS = {"1_0": (96, 7, (2, 6, 11)), "1_1": (64, 3, (2, 5, 8))}
SQUEEZES = (16, 16, 32, 32, 48, 48, 64, 64)


class Fire(nn.Module):
    """A 1x1 convolution to `features` channels, then parallel 1x1 and 3x3 convolutions to four times as many each."""

    features: int

    @nn.compact
    def __call__(self, x: Maps) -> Float[Array, "b h w e"]:
        x = jax.nn.relu(make_conv(self.features, (1, 1), name="squeeze")(x))
        expanded = [make_conv(4 * self.features, (k, k), name=f"expand{k}x{k}")(x) for k in (1, 3)]
        return jax.nn.relu(jnp.concatenate(expanded, axis=-1))


class SqueezeNet(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled features (b, d).

    `version` is "1_0" or "1_1", which has a smaller first convolution and earlier pools. Raises ValueError for another
    version, and for images that are too small for the last pool.
    """

    version: str = "1_0"
    dropout: float = 0.5
    num_classes: int = 1000
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        one_of("version", self.version, tuple(VERSIONS))
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        features, kernel, pools = VERSIONS[self.version]
        check_sides("image_size", images.shape[1:3], lambda side: (side - kernel) // 2 + 1 >= 2 ** len(pools))
        x = make_conv(features, (kernel, kernel), strides=2, padding="VALID", name="features_0")(images)
        x = jax.nn.relu(x)
        squeezes = iter(SQUEEZES)
        for i in range(2, 2 + len(pools) + len(SQUEEZES)):
            x = max_pool_ceil(x, 3, 2) if i in pools else Fire(next(squeezes), name=f"features_{i}")(x)
        if self.num_classes:
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
            x = nn.Conv(self.num_classes, (1, 1), kernel_init=nn.initializers.normal(0.01), name="classifier_1")(x)
            x = jax.nn.relu(x)
        return x.mean(axis=(1, 2))

    torch_rules = ((r"(features|classifier)_(\d+)", r"\1.\2"),)


PRESETS = {"squeezenet1_0": dict(version="1_0"), "squeezenet1_1": dict(version="1_1")}
