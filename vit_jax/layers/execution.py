"""How a model is executed: rematerialisation, a loop over equal blocks, and the platform that it is compiled for.

None of it changes a result or where a parameter is stored, so no model has an argument for it. The settings are a
context of JAX's own, part of the key of `jax.jit`: a function that is jitted once is traced again under other settings.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax

from vit_jax.layers.check import one_of

_policies = jax.checkpoint_policies
_LINEAR = _policies.save_from_both_policies(
    _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names("linear")
)

# What the backward pass finds of a block: everything, the outputs of linear maps, or only the block's input.
POLICIES = {"none": None, "dots": _LINEAR, "full": _policies.nothing_saveable}

# The policy of a loop over blocks where `remat` is "none". A loop writes all that it keeps to memory; by a TPU
# compiler's estimate most is recomputed in less time (docs/tpu.md). The outputs of gelu are kept: erf fused into a
# matrix product takes that compiler half a minute.
KEPT_IN_LOOP = _policies.save_from_both_policies(_LINEAR, _policies.save_only_these_names("gelu"))


@dataclasses.dataclass(frozen=True)
class Execution:
    """The settings of `execution`. `stacks` has an entry for each stack of blocks that was traced with them."""

    remat: str = "none"
    scan: bool = False
    platform: str | None = None
    stacks: list[str] = dataclasses.field(default_factory=list, compare=False)

    @property
    def policy(self) -> Callable[..., bool] | None:
        """The policy of `jax.checkpoint`, or None without rematerialisation."""
        return POLICIES[self.remat]


_DEFAULT = Execution()
_context = jax.make_user_context(default_value=_DEFAULT)


@contextlib.contextmanager
def execution(*, remat: str = "none", scan: bool = False, platform: str | None = None) -> Iterator[Execution]:
    """Sets how models are executed that are traced in this context.

    Args:
        remat: what the backward pass recomputes of each block: "none", "dots" (all but the outputs of linear maps) or
            "full".
        scan: compile equal blocks as one loop.
        platform: "cpu", "gpu" or "tpu", which models are compiled for; JAX's default backend if None.

    Yields:
        The settings. If their `stacks` is still empty after a model was traced, the model has no blocks that `remat`
        and `scan` apply to.

    Raises:
        ValueError: for another `remat`.
    """
    one_of("remat", remat, tuple(POLICIES))
    settings = Execution(remat, scan, platform)
    with _context(settings):
        yield settings


def current_execution() -> Execution:
    """The settings of the innermost `execution` context, or the defaults."""
    return _context.value


def target_platform() -> str:
    """The platform that a model is compiled for: "cpu", "gpu" or "tpu"."""
    return current_execution().platform or jax.default_backend()
