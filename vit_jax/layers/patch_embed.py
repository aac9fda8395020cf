"""Patches of an image or video, normalised, projected, normalised again: the entrance of most upstream models."""

from collections.abc import Callable

from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import patch_grid
from vit_jax.layers.dense import Dense
from vit_jax.layers.norm import LayerNorm


class PatchEmbed(nn.Module):
    """Image (b, H, W, c) to tokens (b, n, dim), row by row. `patch_size`: (height, width) in pixels.

    `norm(name=...)` makes the norms before and behind the projection.
    Raises ValueError when `patch_size` does not divide the image.
    """

    patch_size: tuple[int, int]
    dim: int
    norm: Callable[..., nn.Module] = LayerNorm

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"]) -> Float[Array, "b n {self.dim}"]:
        patch_grid(images.shape[1:3], self.patch_size)
        ph, pw = self.patch_size
        x = rearrange(images, "b (h ph) (w pw) c -> b (h w) (ph pw c)", ph=ph, pw=pw)
        x = Dense(self.dim, name="proj")(self.norm(name="norm_in")(x))
        return self.norm(name="norm_out")(x)


class VideoPatchEmbed(nn.Module):
    """Video (b, F, H, W, c) to tokens (b, f, n, dim), frame of patches by frame. `patch_size`: (frames, height, width).

    Raises ValueError when `patch_size` does not divide the video.
    """

    patch_size: tuple[int, int, int]
    dim: int

    @nn.compact
    def __call__(self, video: Float[Array, "b F H W c"]) -> Float[Array, "b f n {self.dim}"]:
        pf, ph, pw = self.patch_size
        if video.shape[1] < 1 or video.shape[1] % pf:
            raise ValueError(f"video of {video.shape[1]} frames: expected a multiple of frame_patch_size={pf}")
        patch_grid(video.shape[2:4], (ph, pw), "image_patch_size")
        x = rearrange(video, "b (f pf) (h ph) (w pw) c -> b f (h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)
        return LayerNorm(name="norm_out")(Dense(self.dim, name="proj")(LayerNorm(name="norm_in")(x)))
