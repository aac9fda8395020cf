"""The patch embedding of most models, for images, series and video: norm, linear layer, norm."""

from collections.abc import Callable

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.array_patches import array_grid, array_patches
from vit_jax.layers.check import patch_count, patch_grid
from vit_jax.layers.dense import Dense
from vit_jax.layers.execution import target_platform
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.patch_convolution import normalized_convolution


class PatchEmbed(nn.Module):
    """Image (b, H, W, c) to tokens (b, n, dim), row by row; or an array with other axes, in their order.

    Args:
        patch_size: size of a patch along each axis, such as (height, width) in pixels.
        dim: width of a token.
        norm: function from a name to the norms before and after the linear layer.

    Raises:
        ValueError: if `patch_size` does not divide the input.
    """

    patch_size: tuple[int, ...]
    dim: int
    norm: Callable[..., nn.Module] = LayerNorm

    @nn.compact
    def __call__(self, x: Float[Array, "b *shape c"]) -> Float[Array, "b n {self.dim}"]:
        if self.norm is LayerNorm and self._is_faster_as_convolution(x):
            norm, linear = (self.variables["params"][name] for name in ("norm_in", "proj"))
            array_grid("image_size", x.shape[1:-1], self.patch_size)
            x = normalized_convolution(
                x, self.patch_size, LayerNorm.epsilon, norm["scale"], norm["bias"], linear["kernel"], linear["bias"]
            )
        else:
            x = array_patches(x, self.patch_size)
            x = Dense(self.dim, name="proj")(self.norm(name="norm_in")(x))
        return self.norm(name="norm_out")(x)

    def _is_faster_as_convolution(self, x: Array) -> bool:
        """Whether `x` are bfloat16 images on a TPU, where moving pixels into patches takes long (docs/tpu.md)."""
        images = x.ndim == 4 and x.dtype == jnp.bfloat16
        return images and target_platform() == "tpu" and not self.is_initializing()


class VideoPatchEmbed(PatchEmbed):
    """Video (b, F, H, W, c) to tokens (b, f, n, dim): n tokens for each of f groups of frames.

    `patch_size` is (frames, height, width). Raises ValueError if it does not divide the video.
    """

    @nn.compact
    def __call__(self, video: Float[Array, "b F H W c"]) -> Float[Array, "b f n {self.dim}"]:
        frames = patch_count("frames", video.shape[1], "frame_patch_size", self.patch_size[0])
        patch_grid(video.shape[2:4], self.patch_size[1:], "image_patch_size")
        return rearrange(super().__call__(video), "b (f n) d -> b f n d", f=frames)
