"""Small parts of the vision transformer: norm, patch embedding and attention pooling.

Axes: b batch, n tokens, d dim, h heads, j key.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, ToHeads, gelu, softmax
from vit_jax.layers.shapes import Images, Patches, Tokens

Norm = Callable[..., nn.Module]  # a function from a name to a norm

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "swiglu": lambda x: jax.nn.silu(x[..., : x.shape[-1] // 2]) * x[..., x.shape[-1] // 2 :],
}


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last axis. Source: Zhang and Sennrich 2019, arXiv:1910.07467."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.epsilon)
        return (y * jnp.expand_dims(scale, range(x.ndim - 1))).astype(jnp.result_type(x, scale))


class PatchEmbed(nn.Module):
    """Images (b, H, W, c) to the tokens of their patches (b, n, d), row by row."""

    patch_size: tuple[int, int]
    dim: int
    use_bias: bool
    norm: Norm | None

    @nn.compact
    def __call__(self, images: Images) -> Patches:
        patch = self.patch_size
        x = nn.Conv(self.dim, patch, strides=patch, padding="VALID", use_bias=self.use_bias, name="proj")(images)
        x = rearrange(x, "b h w d -> b (h w) d")
        return x if self.norm is None else self.norm(name="norm")(x)


class AttentionPool(nn.Module):
    """Pool tokens (b, n, d) to (b, d) by the attention of a learned query, and a feed-forward. Source: SigLIP."""

    heads: int
    feed_forward: Callable[..., nn.Module]
    norm: Norm

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "b d"]:
        dim = x.shape[-1]
        latent = self.param("latent", nn.initializers.truncated_normal(dim**-0.5), (1, 1, dim))
        (q,) = ToHeads(1, self.heads, dim // self.heads, use_bias=True, name="q")(latent)
        k, v = ToHeads(2, self.heads, dim // self.heads, use_bias=True, name="kv")(x)
        attn = softmax(jnp.einsum("hd,bhjd->bhj", q[0, :, 0], k) * (dim // self.heads) ** -0.5)
        out = rearrange(jnp.einsum("bhj,bhjd->bhd", attn, v), "b h d -> b (h d)")
        out = Dense(dim, name="proj")(out)
        return out + self.feed_forward(name="mlp")(self.norm(name="norm")(out))
