"""The patch embedding of the ViT paper and of some upstream models: a linear layer without norms."""

from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import patch_grid
from vit_jax.layers.dense import Dense


class PatchProjection(nn.Module):
    """Image (b, H, W, c) to tokens (b, n, dim), row by row.

    `patch_size` is (height, width) in pixels. Raises ValueError if it does not divide the image.
    """

    patch_size: tuple[int, int]
    dim: int

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"]) -> Float[Array, "b n {self.dim}"]:
        patch_grid(images.shape[1:3], self.patch_size)
        ph, pw = self.patch_size
        patches = rearrange(images, "b (h ph) (w pw) c -> b (h w) (ph pw c)", ph=ph, pw=pw)
        return Dense(self.dim, name="proj")(patches)
