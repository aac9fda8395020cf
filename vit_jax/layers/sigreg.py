"""SIGReg: a loss that is small where features are normally distributed along every direction.

Source: Balestriero and LeCun 2025, arXiv:2511.08544 (LeJEPA). Upstream: `sigreg_loss` in vit_pytorch/lejepa.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.layers.norm import l2_normalize


def random_directions(key: Array, dim: int, count: int = 1024) -> Float[Array, "m {dim}"]:
    """Directions drawn evenly from the unit sphere, float32."""
    return l2_normalize(jax.random.normal(key, (count, dim)))


def sigreg_loss(x: Float[Array, "b n d"], directions: Float[Array, "m d"]) -> Float[Array, ""]:
    """Distance of characteristic functions: of the features of all tokens along `directions`, and of N(0, 1)."""
    knots = np.linspace(-5, 5, 17, dtype=np.float32)
    normal = np.exp(-0.5 * knots**2)[None]
    along = jnp.einsum("bnd,md->bnm", x, directions.astype(x.dtype)).astype(jnp.float32)
    angles = along.reshape(-1, len(directions), 1) * knots[None, None]
    error = jnp.square(jnp.cos(angles).mean(axis=0) - normal) + jnp.square(jnp.sin(angles).mean(axis=0))
    return jnp.trapezoid(error * normal, dx=10 / 16).mean().astype(x.dtype)
