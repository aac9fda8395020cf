"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382): training drops residual branches at random.

A branch is dropped for some examples of a batch, and the rate rises linearly with the depth of the block, as in DeiT
(arXiv:2012.12877) and timm.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

Branch = Float[Array, "b *n"]
DropPath = Callable[[Branch], Branch]
Rates = float | Sequence[float]


def drop_rates(rate: Rates, depth: int) -> tuple[float, ...]:
    """The rate of each of `depth` blocks: from 0 in the first block to `rate` in the last, or as `rate` lists them."""
    return tuple(np.linspace(0, rate, depth).tolist()) if isinstance(rate, int | float) else tuple(rate)


def stage_rates(rate: float, depths: Sequence[int]) -> list[tuple[float, ...]]:
    """The rates of the blocks of each stage, which rise linearly from the first block of all stages to the last."""
    rates = iter(drop_rates(rate, sum(depths)))
    return [tuple(itertools.islice(rates, depth)) for depth in depths]


def drop_paths(module: nn.Module, rate: Rates, depth: int, train: bool) -> list[DropPath]:
    """For each of `depth` blocks of `module`, the function that the block applies to the output of every branch.

    Args:
        module: module in whose call the functions are used; its rng "dropout" decides what is dropped.
        rate: as in `drop_rates`.
        depth: number of blocks.
        train: whether branches are dropped; otherwise the functions return their argument.
    """
    return [make_drop_path(module, of_block, train) for of_block in drop_rates(rate, depth)]


def make_drop_path(module: nn.Module, rate: float, train: bool) -> DropPath:
    """The function that a block with this `rate` applies to the output of every branch; see `drop_paths`."""
    return functools.partial(drop_path, module, rate) if train and rate > 0 else lambda branch: branch


def drop_path(module: nn.Module, rate: float | Float[Array, ""], branch: Branch) -> Branch:
    """Set each row of `branch` to 0 with probability `rate`, and divide the others by 1 - `rate`.

    The mean over draws is thus `branch`. Rows are examples, or sequences where a model splits an example into several.
    """
    keep = 1 - rate
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    kept = jax.random.bernoulli(module.make_rng("dropout"), keep, shape)
    return branch * (kept / jnp.maximum(keep, 1e-6)).astype(branch.dtype)
