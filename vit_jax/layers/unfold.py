"""Overlapping windows of an image as vectors, in the order of torch's `nn.Unfold`."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def unfold_grid(size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: int = 0):
    """Return the number of rows and columns of windows. Raises ValueError if the image is smaller than a window."""
    rows, columns = ((side + 2 * padding - k) // s + 1 for side, k, s in zip(size, kernel, stride, strict=True))
    if rows < 1 or columns < 1:
        raise ValueError(
            f"image of {size} pixels: expected at least {kernel}, the window, including padding={padding} on each side"
        )
    return rows, columns


def unfold(
    images: Float[Array, "b H W c"],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int = 0,
) -> Float[Array, "b rows columns ckk"]:
    """Return windows of `kernel` pixels every `stride` pixels of the zero-padded image, with features (c, kh, kw).

    It takes one strided slice for each pixel of the window. XLA's own patch extraction is a convolution with a one-hot
    kernel, which multiplies by zeros.
    """
    batch, height, width, channels = images.shape
    rows, columns = unfold_grid((height, width), kernel, stride, padding)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = [
        padded[:, i : i + stride[0] * rows : stride[0], j : j + stride[1] * columns : stride[1]]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return jnp.stack(windows, axis=-1).reshape(batch, rows, columns, channels * len(windows))
