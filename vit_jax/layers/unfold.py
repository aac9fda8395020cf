"""Overlapping windows of an image as vectors, as torch's `nn.Unfold` orders them."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def unfold_grid(size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: int = 0):
    """Rows and columns of windows. Raises ValueError when not even one fits."""
    rows, columns = ((side + 2 * padding - k) // s + 1 for side, k, s in zip(size, kernel, stride, strict=True))
    if rows < 1 or columns < 1:
        raise ValueError(f"image of {size} pixels: expected at least {kernel}, the window, less padding {padding}")
    return rows, columns


def unfold(
    images: Float[Array, "b H W c"],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int = 0,
) -> Float[Array, "b rows columns ckk"]:
    """Windows of `kernel` pixels every `stride` pixels over the zero-padded image; features run (c, kh, kw).

    One strided slice per window pixel: XLA's own form, a convolution with a one-hot kernel, multiplies by zeros.
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
