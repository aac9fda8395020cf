"""Attention and feed-forward in turn: what most transformers are whose attention or feed-forward is their own."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from vit_jax.layers.execution import KEPT_IN_LOOP, Execution, asked_execution
from vit_jax.layers.norm import LayerNorm

Part = Callable[..., nn.Module]


class Blocks(nn.Module):
    """`depth` blocks of attention and feed-forward, each with its residual; no last norm.

    `attention(name=...)` and `feed_forward(name=...)` make the modules of a block, and `context` goes to the first.
    """

    depth: int
    attention: Part
    feed_forward: Part

    def add(self, x: Array, out: Array, part: str, i: int) -> Float[Array, "*batch d"]:
        """The residual around the `part` "attn" or "ff" of block `i`, which has made `out` of `x`."""
        return x + out

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"], *context, train: bool = False) -> Float[Array, "*batch d"]:
        add = None if type(self).add is Blocks.add else type(self).add
        return run_blocks(self, self.depth, self.attention, self.feed_forward, x, *context, add=add, train=train)


class NormedBlocks(Blocks):
    """`Blocks` and a last norm, which `norm(name=...)` makes."""

    norm: Part = LayerNorm

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"], *context, train: bool = False) -> Float[Array, "*batch d"]:
        return self.norm(name="norm")(super().__call__(x, *context, train=train))


def run_blocks(
    module: nn.Module,
    depth: int,
    attention: Part,
    feed_forward: Part,
    x: Float[Array, "*batch d"],
    *context,
    add: Callable[[nn.Module, Array, Array, str, int], Array] | None = None,
    train: bool = False,
) -> Float[Array, "*batch d"]:
    """Blocks of `module`, called attn_0, ff_0, attn_1 ..., each with its residual or else with what `add` makes of it.

    Within `execution` the backward pass computes them again, and equal ones are a loop.
    """
    asked = asked_execution()
    asked.stacks += 1
    if asked.scan and add is None and (stacked := _stacked(module, depth)):
        return _scan(module, stacked, attention, feed_forward, x, *context, asked=asked, train=train)
    add = add or (lambda module, x, out, part, i: x + out)
    for i in range(depth):

        def block(module, x, *context, i=i):
            x = add(module, x, attention(name=f"attn_{i}")(x, *context, train=train), "attn", i)
            return add(module, x, feed_forward(name=f"ff_{i}")(x, train=train), "ff", i)

        x = (block if asked.policy is None else nn.remat(block, policy=asked.policy))(module, x, *context)
    return x


def _stacked(module: nn.Module, depth: int) -> PyTree | None:
    """The parameters of all blocks, each as one array; None where blocks cannot be a loop.

    They cannot while parameters are made or anything else is collected, and where they are unlike each other.
    """
    if depth < 2 or any(module.is_mutable_collection(name) for name in ("params", "batch_stats", "intermediates")):
        return None
    params = module.variables["params"]
    blocks = [{part: params.get(f"{part}_{i}", {}) for part in ("attn", "ff")} for i in range(depth)]
    if len({str(jax.tree.map(jnp.shape, block)) for block in blocks}) > 1:
        return None
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def _scan(
    module: nn.Module,
    stacked: PyTree,
    attention: Part,
    feed_forward: Part,
    x: Array,
    *context,
    asked: Execution,
    train: bool,
) -> Array:
    """The output of the blocks, by a scan over their parameters. Dropout draws differ from those without the scan."""
    parts = {"attn": (attention(parent=None), context), "ff": (feed_forward(parent=None), ())}
    keys = None
    if train and module.has_rng("dropout"):
        keys = jax.random.split(module.make_rng("dropout"), len(jax.tree.leaves(stacked)[0]))

    def block(x, inputs):
        params, key = inputs
        for number, (name, (part, arguments)) in enumerate(parts.items()):
            rngs = None if key is None else {"dropout": jax.random.fold_in(key, number)}
            x = x + part.apply({"params": params[name]}, x, *arguments, train=train, rngs=rngs)
        return x, None

    block = jax.checkpoint(block, policy=asked.policy or KEPT_IN_LOOP, prevent_cse=False)
    return jax.lax.scan(block, x, (stacked, keys))[0]
