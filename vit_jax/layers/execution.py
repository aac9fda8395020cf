"""Settings for the execution of models: rematerialisation, loops over equal blocks, attention, the target platform.

They change neither results nor the names of parameters, so models have no arguments for them. The settings are a JAX
user context, which is part of the cache key of `jax.jit`: under other settings, a jitted function is traced again.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
from jax.sharding import NamedSharding

from vit_jax.layers.check import one_of

_policies = jax.checkpoint_policies
_LINEAR = _policies.save_from_both_policies(
    _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names("linear")
)

# Activations of a block that are saved for the backward pass: all, the outputs of linear layers, or only its input.
POLICIES = {"none": None, "dots": _LINEAR, "full": _policies.nothing_saveable}

# The policy of a loop over blocks if `remat` is "none". A loop writes all saved activations to memory. A TPU compiler
# estimates that recomputing most of them takes less time (docs/tpu.md). The outputs of gelu are saved because that
# compiler needs half a minute for an erf that is fused into a matmul.
KEPT_IN_LOOP = _policies.save_from_both_policies(_LINEAR, _policies.save_only_these_names("gelu"))


@dataclasses.dataclass(frozen=True)
class Execution:
    """The settings of `execution`. Each stack of blocks that is traced with them appends its class name to `stacks`."""

    remat: str = "none"
    scan: bool = False
    platform: str | None = None
    attention: str = "auto"
    batch: NamedSharding | None = None
    stacks: list[str] = dataclasses.field(default_factory=list, compare=False)

    @property
    def policy(self) -> Callable[..., bool] | None:
        """The policy for `jax.checkpoint`, or None for no rematerialisation."""
        return POLICIES[self.remat]


ATTENTION = ("auto", "plain", "fused")

_DEFAULT = Execution()
_context = jax.make_user_context(default_value=_DEFAULT)


@contextlib.contextmanager
def execution(
    *,
    remat: str = "none",
    scan: bool = False,
    platform: str | None = None,
    attention: str = "auto",
    batch: NamedSharding | None = None,
) -> Iterator[Execution]:
    """Set how models that are traced in this context are executed.

    Args:
        remat: activations of a block that the backward pass recomputes: "none", "dots" (all but the outputs of linear
            layers) or "full".
        scan: compile equal blocks as one loop.
        platform: "cpu", "gpu" or "tpu", for which models are compiled; None for JAX's default backend.
        attention: "plain" computes the whole attention map, "fused" does not store it, "auto" chooses by the number of
            tokens. Maps that are collected or have dropout are always computed.
        batch: how the batch is divided among devices. A TPU's attention kernel needs it; without it, attention is
            computed by blocks of queries. It also tells how much memory attention maps take on a TPU.

    Yields:
        The settings. If `stacks` is still empty after a model was traced, the model has no blocks that support `remat`
            and `scan`.

    Raises:
        ValueError: for another `remat` or `attention`.
    """
    one_of("remat", remat, tuple(POLICIES))
    one_of("attention", attention, ATTENTION)
    settings = Execution(remat, scan, platform, attention, batch)
    with _context(settings):
        yield settings


def current_execution() -> Execution:
    """The settings of the innermost `execution` context, or the defaults."""
    return _context.value


def target_platform() -> str:
    """The platform that a model is compiled for: "cpu", "gpu" or "tpu"."""
    return current_execution().platform or jax.default_backend()


def batch_parts() -> int:
    """The number of parts that a batch is divided into among devices, as far as `execution(batch=)` tells."""
    sharding = current_execution().batch
    return 1 if sharding is None else math.prod(sharding.mesh.shape[axis] for axis in jax.tree.leaves(sharding.spec[0]))
