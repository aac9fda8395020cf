"""Normalisation over features, as torch has it."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with torch's epsilon.

    Statistics are float32 whatever the input's dtype. Source: Ba et al. 2016, arXiv:1607.06450.
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


# Jitted for its gradient: all three uses of x then give one term, as its twin in torch does. Given term by term, XLA's
# CPU backend adds them up anew in every layer below, at a cost quadratic in depth (benchmarks/README.md).
@functools.partial(jax.jit, static_argnames="epsilon")
def standardize(x: Float[Array, "*batch d"], epsilon: float) -> Float[Array, "*batch d"]:
    """`x` with mean 0 and variance 1 over the last axis, at least float32.

    The variance is taken around the mean: E[x^2] - E[x]^2 loses half of the digits once the mean exceeds the deviation.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x - x.mean(axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon)


def l2_normalize(x: Float[Array, "*batch d"], epsilon: float = 1e-12) -> Float[Array, "*batch d"]:
    """`x` with length 1 over the last axis (zeros stay zeros), as torch's `F.normalize`, computed in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    length = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * lax.rsqrt(jnp.maximum(length, epsilon**2))).astype(x.dtype)
