"""How a model is carried out: what the backward pass computes again, whether equal blocks are one loop, on what.

None of it changes a result or a parameter's place, so no model has an argument for it. Whoever traces a model says so
around it: `with execution(remat="full"): model.apply(...)`.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import jax

from vit_jax.layers.check import one_of

_policies = jax.checkpoint_policies
_LINEAR = _policies.save_from_both_policies(
    _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names("linear")
)

# What is kept of a block for the backward pass: everything; what the linear maps give; or only what comes into it.
POLICIES = {"none": None, "dots": _LINEAR, "full": _policies.nothing_saveable}

# What a loop over blocks keeps where `remat` is "none". All that a gradient asks for would be written to memory, and
# most is computed again in less time, by a TPU compiler's count (docs/tpu.md). What gelu gives is kept: erf within a
# product of matrices takes that compiler half a minute.
KEPT_IN_LOOP = _policies.save_from_both_policies(_LINEAR, _policies.save_only_these_names("gelu"))


@dataclasses.dataclass
class Execution:
    """The requested remat and scan, and the number of block stacks that applied them."""

    remat: str = "none"
    scan: bool = False
    device: str | None = None
    stacks: int = 0

    @property
    def policy(self) -> Callable[..., bool] | None:
        """The policy of `jax.checkpoint`, or None without rematerialisation."""
        return POLICIES[self.remat]


_current: contextvars.ContextVar[Execution] = contextvars.ContextVar("execution")


@contextlib.contextmanager
def execution(*, remat: str = "none", scan: bool = False, device: str | None = None) -> Iterator[Execution]:
    """Models traced within compute blocks again by `remat` ("none", "dots", "full"), and `scan` over equal ones.

    `device` is what they are compiled for ("cpu", "gpu", "tpu"), JAX's default if None. Raises ValueError for another
    `remat`.
    """
    one_of("remat", remat, tuple(POLICIES))
    token = _current.set(asked := Execution(remat, scan, device))
    try:
        yield asked
    finally:
        _current.reset(token)


def asked_execution() -> Execution:
    """The settings of the innermost `execution` context, or the defaults."""
    return _current.get(Execution())


def target() -> str:
    """The kind of device that a model is compiled for: "cpu", "gpu", "tpu"."""
    return asked_execution().device or jax.default_backend()
