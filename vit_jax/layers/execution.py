"""How blocks are carried out: what the backward pass computes again, and whether equal blocks are one loop.

Neither changes a result or a parameter's place, so no model has an argument for it. Whoever traces a model says so
around it: `with execution(remat="full"): model.apply(...)`.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import jax

from vit_jax.layers.check import one_of

# What is kept of a block for the backward pass: everything; what the linear maps give; or only what comes into it.
POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass
class Execution:
    """What is asked for, and how many stacks of blocks have heard of it."""

    remat: str = "none"
    scan: bool = False
    stacks: int = 0

    @property
    def policy(self) -> Callable[..., bool] | None:
        """What `jax.checkpoint` may keep, or None where nothing is computed again."""
        return POLICIES[self.remat]


_current: contextvars.ContextVar[Execution] = contextvars.ContextVar("execution")


@contextlib.contextmanager
def execution(*, remat: str = "none", scan: bool = False) -> Iterator[Execution]:
    """Models traced within compute blocks again by `remat` ("none", "dots", "full"), and `scan` over equal ones.

    Raises ValueError for another `remat`.
    """
    one_of("remat", remat, tuple(POLICIES))
    token = _current.set(asked := Execution(remat, scan))
    try:
        yield asked
    finally:
        _current.reset(token)


def asked_execution() -> Execution:
    """What the nearest `execution` around asks for, or nothing."""
    return _current.get(Execution())
