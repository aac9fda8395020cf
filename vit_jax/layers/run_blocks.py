"""Apply a stack of equal blocks, with rematerialisation or as a loop if `execution` says so."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from vit_jax.layers.drop_path import Rates, drop_path, drop_rates, make_drop_path
from vit_jax.layers.execution import KEPT_IN_LOOP, current_execution

Block = Callable[..., Array]

UNROLLED = ("params", "batch_stats", "intermediates")  # collections that a loop cannot write


def run_blocks(
    module: nn.Module,
    depth: int,
    block: Block,
    x: Float[Array, "*batch d"],
    *context,
    rate: Rates = 0.0,
    train: bool = False,
) -> Float[Array, "*batch d"]:
    """Run `for i in range(depth): x = block(i, x, drop_path, *context)` with the settings of `execution`.

    A block applies its `drop_path` to the output of each residual branch.

    Args:
        module: module that the blocks belong to. `run_blocks` must be called in its compact method.
        depth: number of blocks.
        block: function that creates the modules of block i, with names that end in `_i`, and applies them. Blocks may
            differ only in the values of their parameters and in their rate.
        x: input of the first block.
        *context (Array): further inputs of every block.
        rate: rate of stochastic depth in the last block, which rises linearly from 0, or the rate of each block.
        train: whether the blocks draw random numbers from the rng "dropout".

    Returns:
        The output of the last block.
    """
    settings, rates = current_execution(), drop_rates(rate, depth)
    settings.stacks.append(type(module).__name__)
    if settings.scan and (stacked := _stacked_parameters(module, depth)):
        return _scan(module, stacked, block, x, *context, rates=rates, train=train)
    for i in range(depth):

        def numbered(module, x, *context, i=i):
            return block(i, x, make_drop_path(module, rates[i], train), *context)

        x = sow_block(module, rematerialized(numbered)(module, x, *context))
    return x


def sow_block(module: nn.Module, x: PyTree) -> PyTree:
    """Sow `x`, one or several outputs of a block of `module`, for `vit_jax.capture.features`, and return it."""
    module.sow("intermediates", "block", x)  # kept only if the caller collects intermediates
    return x


def rematerialized(block: Block) -> Block:
    """Return `block`, a function of a module and arrays, with the rematerialisation that `execution` sets."""
    policy = current_execution().policy
    return block if policy is None else nn.remat(block, policy=policy)


class _First(nn.Module):
    """Block 0 as a module of its own, so that it can be applied to the parameters of every block."""

    block: Block

    @nn.compact
    def __call__(self, x: Array, rate: Float[Array, ""] | None, *context) -> Array:
        dropped = (lambda branch: branch) if rate is None else functools.partial(drop_path, self, rate)
        return self.block(0, x, dropped, *context)


def _stacked_parameters(module: nn.Module, depth: int) -> PyTree | None:
    """Stack the parameters of all blocks along a new first axis, under the names of block 0.

    Returns None if a loop is impossible: during initialisation, while other collections are written, or if the shapes
    of blocks differ.
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


def _scan(
    module: nn.Module, stacked: PyTree, block: Block, x: Array, *context, rates: tuple[float, ...], train: bool
) -> Array:
    """Apply the blocks by a scan over their parameters. Dropout draws differ from those of the unrolled blocks."""
    first, keys = _First(block, parent=None), None
    rates = jnp.asarray(rates) if train and any(rates) else None
    if train and module.has_rng("dropout"):
        keys = jax.random.split(module.make_rng("dropout"), len(jax.tree.leaves(stacked)[0]))

    def step(x, inputs):
        parameters, key, rate = inputs
        rngs = None if key is None else {"dropout": key}
        return first.apply({"params": parameters}, x, rate, *context, rngs=rngs), None

    step = jax.checkpoint(step, policy=current_execution().policy or KEPT_IN_LOOP, prevent_cse=False)
    return jax.lax.scan(step, x, (stacked, keys, rates))[0]
