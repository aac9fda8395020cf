"""The patch embedding of most models, for images, series and video: norm, linear layer, norm."""

from collections.abc import Callable

from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.array_patches import array_patches
from vit_jax.layers.check import patch_count, patch_grid
from vit_jax.layers.dense import Dense
from vit_jax.layers.norm import LayerNorm


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
        x = array_patches(x, self.patch_size)
        x = Dense(self.dim, name="proj")(self.norm(name="norm_in")(x))
        return self.norm(name="norm_out")(x)


class VideoPatchEmbed(PatchEmbed):
    """Video (b, F, H, W, c) to tokens (b, f, n, dim): n tokens for each of f groups of frames.

    `patch_size` is (frames, height, width). Raises ValueError if it does not divide the video.
    """

    @nn.compact
    def __call__(self, video: Float[Array, "b F H W c"]) -> Float[Array, "b f n {self.dim}"]:
        frames = patch_count("frames", video.shape[1], "frame_patch_size", self.patch_size[0])
        patch_grid(video.shape[2:4], self.patch_size[1:], "image_patch_size")
        return rearrange(super().__call__(video), "b (f n) d -> b f n d", f=frames)
