"""Rotary positions of patches: pairs of features of queries and keys turn by angles that depend on row and column.

Source: Su et al. 2021 (RoFormer), arXiv:2104.09864; in two dimensions, Heo et al. 2024, arXiv:2403.13298.
Axes: b batch, h heads (1 if all heads turn alike), n tokens, f pairs of features, d features of a head.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.layers.check import one_of


@dataclasses.dataclass(frozen=True)
class Rotary:
    """How a network computes its angles: coordinates of patches times frequencies.

    Args:
        form: "axial", where half of the pairs turn with the row and half with the column; "dinov3", the same with
            coordinates from -1 to 1; or "mixed", where every block and head learns frequencies for both.
        temperature: the frequencies are its powers from 0 to -1.
        columns_first: whether the first half of the pairs turns with the column.
        offset: number of the first row and column.
        reference: rows and columns of the grid to which other grids are rescaled, or None to count patches.

    Raises:
        ValueError: for another form.
    """

    form: str = "axial"
    temperature: float = 10_000.0
    columns_first: bool = False
    offset: float = 0.0
    reference: int | None = None

    def __post_init__(self):
        one_of("form", self.form, ("axial", "dinov3", "mixed"))

    def coordinates(self, grid: tuple[int, int], before: int, after: int) -> Float[np.ndarray, "2 1 n 1"]:
        """Coordinates of all tokens. They are zero for tokens before and after the patches, which do not turn."""
        places = np.indices(grid, np.float32).reshape(2, -1)
        sides = np.array(grid, np.float32)[:, None]
        if self.form == "dinov3":
            places = 2 * np.pi * (2 * (places + 0.5) / sides - 1)
        elif self.reference:
            places = (places + self.offset) / sides * self.reference
        else:
            places = places + self.offset
        places = places[::-1] if self.columns_first else places
        return np.pad(places, ((0, 0), (before, after))).astype(np.float32)[:, None, :, None]

    def frequencies(self, dim_head: int) -> Float[np.ndarray, "2 1 1 f"]:
        """Fixed frequencies of both coordinates."""
        powers = self.temperature ** -(np.arange(dim_head // 4) / (dim_head // 4))
        both = np.stack([np.append(powers, 0 * powers), np.append(0 * powers, powers)])
        return both.astype(np.float32)[:, None, None]

    def init_frequencies(self, key: Array, shape: tuple[int, int, int]) -> Float[Array, "2 h f"]:
        """Initial learned frequencies: the fixed ones, with the axes of every head turned by a random angle."""
        _, heads, pairs = shape
        angle = jax.random.uniform(key, (heads, 1), maxval=2 * np.pi)
        powers = jnp.asarray(self.frequencies(2 * pairs)[0, 0, :, : pairs // 2])
        turned = lambda angle: jnp.stack([powers * jnp.cos(angle), powers * jnp.sin(angle)])
        return jnp.concatenate([turned(angle), turned(angle + np.pi / 2)], axis=-1)

    def rotate(
        self, x: Float[Array, "b h n d"], angles: Float[Array | np.ndarray, "#h n f"]
    ) -> Float[Array, "b h n d"]:
        """Turn the pairs of features of `x`: neighbours, or with "dinov3" features of the first and second half."""
        sin, cos = jnp.sin(angles)[None], jnp.cos(angles)[None]
        halves = self.form == "dinov3"
        a, b = jnp.split(x, 2, axis=-1) if halves else (x[..., ::2], x[..., 1::2])
        a, b = a * cos - b * sin, b * cos + a * sin  # in float32, as the angles
        turned = jnp.concatenate([a, b], axis=-1) if halves else jnp.stack([a, b], axis=-1).reshape(x.shape)
        return turned.astype(x.dtype)
