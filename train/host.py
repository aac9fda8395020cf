"""The memory of this machine, and sizes in words."""

import os
from pathlib import Path


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
