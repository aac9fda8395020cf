"""LayerNorm and linear layer of an image's patches as one convolution, without moving pixels into patches.

With k = scale * kernel, the linear layer of a normalised patch x is

    ((x - mean) / std * scale + bias) @ kernel + b = (x @ k - mean * sum(k)) / std + bias @ kernel + b

where x @ k, for all patches, is a strided convolution of the image.
Axes: b batch, y x pixels, r s patches, c channels, d dim.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jax import lax
from jaxtyping import Array, Float


def normalized_convolution(
    images: Float[Array, "b y x c"],
    patch_size: tuple[int, int],
    epsilon: float,
    scale: Float[Array, " p"],
    bias: Float[Array, " p"],
    kernel: Float[Array, "p d"],
    b: Float[Array, " d"],
) -> Float[Array, "b n d"]:
    """Return `LayerNorm(patches) @ kernel + b`, row by row, for bfloat16 on a TPU.

    Args:
        images: images whose size `patch_size` divides.
        patch_size: height and width of a patch in pixels.
        epsilon: of the norm.
        scale: of the norm, for the p pixels of a patch.
        bias: of the norm.
        kernel: of the linear layer.
        b: bias of the linear layer.
    """
    scaled = (scale[:, None] * kernel).astype(jnp.float32)
    scaled = lax.reduce_precision(scaled, exponent_bits=8, mantissa_bits=7)  # so that mean * sum(k) cancels in x @ k
    # reduce_precision changes no value. Without it, XLA would undo the conversion, and then copy the images from layout
    # to layout: with it, the copies are part of other operations.
    pixels = lax.reduce_precision(images.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
    # A TPU multiplies the float32 operands of a convolution in bfloat16, which is exact here, and adds in float32. It
    # stores the images with the batch last, and pads a small batch to whole tiles: so every row of patches is an image.
    products = lax.conv_general_dilated(
        rearrange(pixels, "b (r y) x c -> (b r) y x c", y=patch_size[0]),
        scaled.reshape(*patch_size, images.shape[-1], kernel.shape[-1]),
        window_strides=patch_size,
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    products = products.reshape(len(images), images.shape[1] // patch_size[0], *products.shape[2:])
    mean, variance = (statistic[..., None] for statistic in patch_statistics(pixels, patch_size))
    along_last = lambda vector: vector[None, None, None]
    offset = jnp.matmul(bias, kernel, preferred_element_type=jnp.float32) + b
    tokens = (products - mean * along_last(scaled.sum(axis=0))) * lax.rsqrt(variance + epsilon) + along_last(offset)
    return lax.collapse(tokens, 1, 3).astype(images.dtype)


def patch_statistics(
    images: Float[Array, "b y x c"], patch_size: tuple[int, int]
) -> tuple[Float[Array, "b r s"], Float[Array, "b r s"]]:
    """Return mean and variance of every patch, in float32; `images` are float32 with the digits of bfloat16.

    Columns are added by a matmul, since a TPU stores images with y and x last.
    """
    height, width = patch_size
    channels = images.shape[-1]
    in_patch = np.kron(np.eye(images.shape[2] // width, dtype=np.float32), np.ones((width, 1), np.float32))

    def mean(pixels: Array) -> Array:
        sums = jnp.einsum("byxc,xs->bcys", pixels, in_patch, precision=lax.Precision.HIGH)  # squares have 16 bits
        return reduce(sums, "b c (r y) s -> b r s", "sum", y=height) / (height * width * channels)

    average = mean(images)
    return average, jnp.maximum(mean(jnp.square(images)) - jnp.square(average), 0)
