"""A transformer that returns the input of every block, for models that read all layers of a vision transformer."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.blocks import NormedBlocks
from vit_jax.layers.run_blocks import sow_block
from vit_jax.layers.shapes import Tokens


class Trajectory(NormedBlocks):
    """`NormedBlocks` that return the input of every block, then the output of the norm: depth + 1 arrays."""

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> list[Tokens]:
        trajectory = []
        for i, drop_path in enumerate(self.drop_paths(train)):
            trajectory.append(x)
            x = x + drop_path(self.attention(name=f"attn_{i}")(x, train=train))
            x = sow_block(self, x + drop_path(self.feed_forward(name=f"ff_{i}")(x, train=train)))
        return [*trajectory, self.norm(name="norm")(x)]


def with_hiddens(trajectory: Sequence[Tokens]) -> tuple[Tokens, Float[Array, "l b n d"]]:
    """The last tokens of a trajectory, and the inputs of the blocks, stacked: upstream's `return_hiddens`."""
    *hiddens, last = trajectory
    return last, jnp.stack(hiddens)
