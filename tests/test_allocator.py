"""Steps on a CPU use freed memory again."""

import ctypes
import platform
import subprocess
import sys
import types

import pytest

from train.allocator import M_MMAP_THRESHOLD, keep_freed_memory

# A program allocates 128 MiB, five times; the page faults of the last two runs are printed.
FIVE_RUNS = """
import resource, sys
from train.allocator import compute_in_main_thread, keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
    compute_in_main_thread()
import jax, jax.numpy as jnp

program = jax.jit(lambda x: jnp.broadcast_to(x, (32 << 20,)))
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(jnp.ones(())).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults[-2:])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets parameters of glibc")
def test_a_program_takes_the_memory_of_the_run_before():
    def faults(how):
        ran = subprocess.run([sys.executable, "-c", FIVE_RUNS, how], capture_output=True, text=True, check=True)
        return [*map(int, ran.stdout.split())]

    assert min(faults("default")) > 50  # pages may have 2 MiB
    assert max(faults("kept")) < 10


@pytest.mark.skipif(sys.platform != "linux", reason="sets parameters of glibc")
def test_an_old_glibc_keeps_its_defaults(monkeypatch):
    """It refuses the first parameter, and the second alone would do harm."""
    asked = []
    refuse = lambda parameter, _: asked.append(parameter) or 0
    monkeypatch.setattr(ctypes, "CDLL", lambda _: types.SimpleNamespace(mallopt=refuse))
    keep_freed_memory()
    assert asked == [M_MMAP_THRESHOLD]
