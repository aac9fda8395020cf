"""Normalisation over features, as in torch."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with torch's epsilon.

    Statistics are computed in float32 for any dtype of the input. Source: Ba et al. 2016, arXiv:1607.06450.
    """

    epsilon: float = 1e-5
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        along_last = lambda parameter: jnp.expand_dims(parameter, range(x.ndim - 1))
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        y = standardize(x, self.epsilon) * along_last(scale)
        if self.use_bias:
            y = y + along_last(self.param("bias", nn.initializers.zeros, x.shape[-1:]))
        return y.astype(jnp.result_type(x, scale))


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of (b, h, w, d); `g` and `b` have upstream's shape, (1, d, 1, 1)."""

    epsilon: float = 1e-5
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        shape = (1, x.shape[-1], 1, 1)
        g = self.param("g", nn.initializers.ones, shape)
        y = standardize(x, self.epsilon) * g.reshape(1, 1, 1, -1)
        if self.use_bias:
            y = y + self.param("b", nn.initializers.zeros, shape).reshape(1, 1, 1, -1)
        return y.astype(jnp.result_type(x, g))


# Jitted for its gradient, so that the three uses of x contribute one term to the gradient of x, as in torch. With three
# separate terms, XLA's CPU backend repeats their sum in every layer below, a cost quadratic in the depth
# (benchmarks/README.md).
@functools.partial(jax.jit, static_argnames="epsilon")
def standardize(x: Float[Array, "*batch d"], epsilon: float) -> Float[Array, "*batch d"]:
    """Return `x` with mean 0 and variance 1 over the last axis, in float32 or higher precision.

    The variance is the mean of (x - mean)^2. E[x^2] - E[x]^2, which needs one pass over x less, would lose half of the
    digits if the mean exceeds the standard deviation. It serves for bfloat16, whose own rounding loses more.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axis=-1, keepdims=True)
    centered = wide - mean
    if x.dtype == jnp.bfloat16:
        variance = jnp.maximum(jnp.square(wide).mean(axis=-1, keepdims=True) - jnp.square(mean), 0)
    else:
        variance = jnp.square(centered).mean(axis=-1, keepdims=True)
    return centered * lax.rsqrt(variance + epsilon)


def l2_normalize(x: Float[Array, "*batch d"], epsilon: float = 1e-12) -> Float[Array, "*batch d"]:
    """Return `x` with length 1 over the last axis, computed in float32. As in torch's `F.normalize`, 0 remains 0."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    length = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * lax.rsqrt(jnp.maximum(length, epsilon**2))).astype(x.dtype)
