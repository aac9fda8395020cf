"""Patches of an image, normalised, projected, normalised again: the entrance of most upstream models."""

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
