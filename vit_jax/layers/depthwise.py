"""Depthwise convolution."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.execution import target_platform
from vit_jax.layers.unfold import unfold_grid

SLICES = 8  # the rows of an image are divided into at most so many slices, whose gradients are added as vectors


class DepthwiseConv(nn.Module):
    """Depthwise convolution of (b, h, w, d) to (b, h', w', multiplier * d), zero-padded by half of the odd `kernel`.

    It is computed as a sum of shifted images. On a CPU the gradient of XLA's grouped convolution took 180 times as long
    (64 images of 7x7x48 to 96 channels); accelerators fuse the sum.
    """

    kernel: int
    stride: int = 1
    multiplier: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b rows columns e"]:
        size, stride, padding = self.kernel, self.stride, self.kernel // 2
        features = self.multiplier * x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (size, size, 1, features))
        bias = self.param("bias", nn.initializers.zeros, (features,)) if self.use_bias else jnp.zeros(features, x.dtype)

        rows, columns = unfold_grid(x.shape[1:3], (size, size), (stride, stride), padding)
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        times = _times if target_platform() == "cpu" else jnp.multiply
        out = bias.reshape(1, 1, 1, features)
        for i in range(size):
            for j in range(size):
                shifted = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
                out = out + times(
                    jnp.repeat(shifted, self.multiplier, axis=-1), kernel[i, j].reshape(1, 1, 1, features)
                )
        return out


@jax.custom_jvp
def _times(x: Float[Array, "b h w d"], factors: Float[Array, "1 1 1 d"]) -> Float[Array, "b h w d"]:
    return x * factors


# The gradient of `factors` is a sum over images, rows and columns, which XLA adds up one product at a time on a CPU.
# JAX transposes this tangent, in which a matrix product with ones repeats `dfactors` for one slice of the rows, and all
# slices use the result. So the transpose adds slices, elementwise, and a matrix product with ones adds up the rest: a
# fifth of the time (64 images of 16x16x128). The batch is not sliced, because a mesh may divide it.
@_times.defjvp
def _times_jvp(primals, tangents):
    (x, factors), (dx, dfactors) = primals, tangents
    slices = jnp.split(x, max(n for n in range(1, SLICES + 1) if x.shape[1] % n == 0), axis=1)
    ones = jnp.ones((slices[0].size // factors.size, 1), x.dtype)
    repeated = (ones @ dfactors.reshape(1, -1)).reshape(slices[0].shape)
    return x * factors, dx * factors + jnp.concatenate([part * repeated for part in slices], axis=1)
