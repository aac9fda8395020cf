"""The memory available to this process.

This module imports nothing from the trainer, because modules at all levels of it use this one.
"""

import math
import os
from pathlib import Path

import jax
from jax.sharding import Mesh


def device_memory(mesh: Mesh) -> tuple[int | float, int]:
    """Bytes of memory of a device, and the number of this process's devices that share them (CPU devices share all)."""
    devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    if devices[0].platform == "cpu":
        return host_memory(), len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit", math.inf), 1


def host_memory() -> int:
    """Bytes of memory that this process may use, without swap."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
        path = Path(file)
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            limits.append(int(text))
    return min(limits)


def in_words(count: int | float) -> str:
    """Format a number of bytes."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**28 else f"{count / 2**20:,.2f} MiB"
