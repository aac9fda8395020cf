"""Equal blocks, one after the other: rematerialised or as a loop if `execution` says so."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from vit_jax.layers.execution import KEPT_IN_LOOP, current_execution

Block = Callable[..., Array]

UNROLLED = ("params", "batch_stats", "intermediates")  # collections that a loop cannot write


def repeat(
    module: nn.Module, depth: int, block: Block, x: Float[Array, "*batch d"], *context, train: bool = False
) -> Float[Array, "*batch d"]:
    """`for i in range(depth): x = block(i, x, *context)`, as the settings of `execution` say.

    Args:
        module: the module that the blocks belong to; `repeat` is called in its compact method.
        depth: number of blocks.
        block: function that creates the modules of block i, with names that end in `_i`, and applies them. The blocks
            must be equal but for the values of their parameters.
        x: input of the first block.
        *context: further arrays that every block reads.
        train: whether the blocks draw random numbers from the rng "dropout".

    Returns:
        The output of the last block.
    """
    settings = current_execution()
    settings.stacks.append(type(module).__name__)
    if settings.scan and (stacked := _stacked_parameters(module, depth)):
        return _scan(module, stacked, block, x, *context, train=train)
    for i in range(depth):
        x = rematerialized(lambda _, *arrays, i=i: block(i, *arrays))(module, x, *context)
        x = block_output(module, x)
    return x


def block_output(module: nn.Module, x: PyTree) -> PyTree:
    """Returns `x`, an output or several of a block of `module`, and marks it for `vit_jax.capture.features`."""
    module.sow("intermediates", "block", x)  # kept only if the caller collects intermediates
    return x


def rematerialized(block: Block) -> Block:
    """`block(module, x, ...)`, whose activations the backward pass recomputes if `execution` says so."""
    policy = current_execution().policy
    return block if policy is None else nn.remat(block, policy=policy)


class _First(nn.Module):
    """Block 0 by itself, so that it can be applied to the parameters of any other."""

    block: Block

    @nn.compact
    def __call__(self, x: Array, *context) -> Array:
        return self.block(0, x, *context)


def _stacked_parameters(module: nn.Module, depth: int) -> PyTree | None:
    """The parameters of all blocks as those of block 0, stacked along a new first axis; None if a loop is impossible.

    It is while parameters are initialised, while other collections are written, and if the shapes of blocks differ.
    """
    if depth < 2 or any(module.is_mutable_collection(name) for name in UNROLLED):
        return None
    blocks = [{} for _ in range(depth)]
    for name, parameters in module.variables["params"].items():
        if number := re.search(r"_(\d+)$", name):
            blocks[int(number[1])][f"{name[: number.start()]}_0"] = parameters
    if len({str(jax.tree.map(jnp.shape, block)) for block in blocks}) > 1:
        return None
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def _scan(module: nn.Module, stacked: PyTree, block: Block, x: Array, *context, train: bool) -> Array:
    """The output of the blocks, by a scan over their parameters. Dropout draws differ from those without the scan."""
    first, keys = _First(block, parent=None), None
    if train and module.has_rng("dropout"):
        keys = jax.random.split(module.make_rng("dropout"), len(jax.tree.leaves(stacked)[0]))

    def step(x, inputs):
        parameters, key = inputs
        rngs = None if key is None else {"dropout": key}
        return first.apply({"params": parameters}, x, *context, rngs=rngs), None

    step = jax.checkpoint(step, policy=current_execution().policy or KEPT_IN_LOOP, prevent_cse=False)
    return jax.lax.scan(step, x, (stacked, keys))[0]
