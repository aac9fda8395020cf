"""A stack of transformer blocks with exchangeable attention and feed-forward."""

import dataclasses
from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.drop_path import DropPath, Rates, drop_paths, drop_rates, make_drop_path
from vit_jax.layers.execution import current_execution
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.run_blocks import rematerialized, run_blocks, sow_block

Part = Callable[..., nn.Module]


class Blocks(nn.Module):
    """`depth` blocks of attention and feed-forward with residual connections, without a final norm.

    `attention(name=...)` and `feed_forward(name=...)` create the modules of a block, named attn_0, ff_0, attn_1, ...
    The `context` of a call is passed to every attention. A subclass may override `add`. `drop_path` is the rate of
    stochastic depth in the last block, which rises linearly from 0, or the rate of each block.
    """

    depth: int
    attention: Part
    feed_forward: Part
    drop_path: Rates = dataclasses.field(default=0.0, kw_only=True)

    def drop_paths(self, train: bool) -> list[DropPath]:
        """For each block, the function that it applies to the output of every branch."""
        return drop_paths(self, self.drop_path, self.depth, train)

    def add(self, x: Array, out: Array, part: str, i: int, drop_path: DropPath) -> Float[Array, "*batch d"]:
        """The residual connection of `x` and the output `out` of a `part`, "attn" or "ff", of block `i`."""
        return x + drop_path(out)

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"], *context, train: bool = False) -> Float[Array, "*batch d"]:
        if type(self).add is not Blocks.add:
            return self._with_own_residuals(x, *context, train=train)

        def block(i, x, drop_path, *context):
            x = x + drop_path(self.attention(name=f"attn_{i}")(x, *context, train=train))
            return x + drop_path(self.feed_forward(name=f"ff_{i}")(x, train=train))

        return run_blocks(self, self.depth, block, x, *context, rate=self.drop_path, train=train)

    def _with_own_residuals(self, x: Array, *context, train: bool) -> Array:
        """Apply the blocks without a loop: a subclass's `add` may have parameters and differ between blocks."""
        current_execution().stacks.append(type(self).__name__)
        for i in range(self.depth):

            def block(module, x, *context, i=i):
                drop_path = make_drop_path(module, drop_rates(self.drop_path, self.depth)[i], train)
                x = module.add(x, self.attention(name=f"attn_{i}")(x, *context, train=train), "attn", i, drop_path)
                return module.add(x, self.feed_forward(name=f"ff_{i}")(x, train=train), "ff", i, drop_path)

            x = sow_block(self, rematerialized(block)(self, x, *context))
        return x


class NormedBlocks(Blocks):
    """`Blocks` with a final norm, created by `norm(name=...)`."""

    norm: Part = LayerNorm

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"], *context, train: bool = False) -> Float[Array, "*batch d"]:
        return self.norm(name="norm")(super().__call__(x, *context, train=train))
