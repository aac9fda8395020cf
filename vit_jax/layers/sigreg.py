"""SIGReg: a loss that is small if features are normally distributed along every direction.

Source: Balestriero and LeCun 2025, arXiv:2511.08544 (LeJEPA). Upstream: `sigreg_loss` in vit_pytorch/lejepa.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.layers.norm import l2_normalize


def random_directions(key: Array, dim: int, count: int = 1024) -> Float[Array, "m {dim}"]:
    """Draw directions uniformly from the unit sphere, float32."""
    return l2_normalize(jax.random.normal(key, (count, dim)))


def sigreg_loss(
    x: Float[Array, "b n d"],
    directions: Float[Array, "m d"],
    domain: tuple[int | float, int | float] = (-5, 5),
    knots: int = 17,
    weights: Float[Array, "b"] | None = None,
) -> Float[Array, ""]:
    """Return the distance between the distribution of features along `directions` and N(0, 1).

    It is the squared difference of their characteristic functions at t, integrated over `domain` with the weight
    exp(-t**2 / 2) and averaged over directions.

    Args:
        x: features of all tokens.
        directions: unit vectors.
        domain: interval of the integral.
        knots: number of points at which the integrand is evaluated.
        weights: weight of each example, equal by default.
    """
    points = np.linspace(*domain, knots, dtype=np.float32)
    normal = np.exp(-0.5 * points**2)[None]
    along = jnp.einsum("bnd,md->bnm", x, directions.astype(x.dtype)).astype(jnp.float32)
    angles = jax.lax.collapse(along, 0, 2)[..., None] * points[None, None]
    if weights is None:
        mean = lambda values: values.mean(axis=0)
    else:
        share = jnp.repeat(weights / jnp.maximum(weights.sum(), 1) / x.shape[1], x.shape[1])[:, None, None]
        mean = lambda values: (values * share).sum(axis=0)
    error = jnp.square(mean(jnp.cos(angles)) - normal) + jnp.square(mean(jnp.sin(angles)))
    step = (domain[1] - domain[0]) / (knots - 1)
    return jnp.trapezoid(error * normal, dx=step).mean().astype(x.dtype)
