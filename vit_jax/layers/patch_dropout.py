"""Patch dropout: training on a random subset of the tokens."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class PatchDropout(nn.Module):
    """If `train`, keep `max(1, int(n * (1 - rate)))` of n tokens, drawn uniformly without replacement.

    The draw uses the rng "dropout". Source: Liu et al. 2022, arXiv:2208.07220.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b m d"]:
        if not train or self.rate == 0:
            return x
        batch, count, _ = x.shape
        noise = jax.random.uniform(self.make_rng("dropout"), (batch, count))
        _, kept = jax.lax.top_k(noise, max(1, int(count * (1 - self.rate))))
        return jnp.take_along_axis(x, kept[:, :, None], axis=1)
