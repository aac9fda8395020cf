"""How memory for programs on a CPU is allocated: each step uses that of the step before."""

import ctypes
import sys

# Parameters of glibc's mallopt, from its malloc.h, and the largest value that it accepts.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the main thread keep freed blocks of up to 2 GiB for its next allocations. Only on Linux with glibc.

    XLA allocates the temporaries of a step on a CPU as one block and frees it after the step. By default, glibc returns
    a block of more than 32 MiB to the system, which then clears every page of the next block: up to 40 % of the time of
    a train step (benchmarks/README.md). Other threads cannot keep such blocks: glibc gives them regions of 64 MiB.

    Only processes that run one command call it: where many programs of different sizes run, the heap grows.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # musl has no mallopt, and old versions of glibc refuse more than 32 MiB. The second parameter alone would do harm:
    # it stops the adaptation of the first, so that glibc would return every block of more than 128 KiB.
    if mallopt and mallopt(M_MMAP_THRESHOLD, MOST):
        mallopt(M_TRIM_THRESHOLD, MOST)


def compute_in_main_thread() -> None:
    """Let JAX run programs on a CPU in the thread that calls them, whose memory is kept.

    JAX does so if their inputs are there (see `train.sharding.to_devices`). It has no effect on accelerators, or after
    JAX has used the CPU.
    """
    import jax  # not at the top: it takes seconds, and --help and wrong options do not need it

    jax.config.update("jax_cpu_enable_async_dispatch", False)
