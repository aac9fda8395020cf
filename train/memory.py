"""The memory that this process has.

It imports nothing of the trainer, because both the data and the checks of a whole run ask it.
"""

import math
import os
from pathlib import Path

import jax
from jax.sharding import Mesh


def device_memory(mesh: Mesh) -> tuple[int | float, int]:
    """Bytes of memory, and how many of this process's devices share them: all CPU devices share the host's."""
    devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    if devices[0].platform == "cpu":
        return host_memory(), len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit", math.inf), 1


def host_memory() -> int:
    """Bytes of memory that this process may use, swap not counted."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # a container's
        path = Path(file)
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            limits.append(int(text))
    return min(limits)


def in_words(count: int | float) -> str:
    """Format a number of bytes."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**28 else f"{count / 2**20:,.2f} MiB"
