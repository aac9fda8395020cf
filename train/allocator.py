"""How memory for programs on a CPU is allocated."""

import ctypes
import sys

# Parameters of glibc's mallopt, from its malloc.h, and the largest value that it accepts.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let every step on a CPU use the memory of the step before. Only the `main` of a command calls it.

    XLA allocates the temporaries of a step as one block and frees it after the step. By default, glibc returns a block
    of more than 32 MiB to the system, which then clears every page of the next block: up to 40 % of the time of a
    train step (benchmarks/README.md). Here the process keeps freed blocks of up to 2 GiB. Only its main thread can:
    glibc gives every other thread regions of 64 MiB. Therefore JAX must run programs in the thread that calls them,
    which it does if their inputs are there (see `train.sharding.to_devices`). It has no effect on accelerators,
    on systems without glibc, or after JAX has used the CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    import jax  # not at the top: it takes seconds, and --help and wrong options do not need it

    mallopt(M_MMAP_THRESHOLD, MOST)
    mallopt(M_TRIM_THRESHOLD, MOST)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
