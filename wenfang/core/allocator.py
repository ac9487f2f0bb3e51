"""How this process gets its memory from the system."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""glibc's names for three of its settings (mallopt(3))."""
LARGE = 512 << 10
"""Bytes of a block that `return_freed_blocks` keeps apart."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, for the next allocation; returns whether the system's libc can.

    glibc hands every large block back to the kernel as soon as it is freed, which must zero it page by page when the
    next one is asked for. A training step allocates and frees all its activations: about a tenth of its time went
    there (docs/log.md, 2026-11-24). A compiled step's peak stays the same, an eager one's rises by 20 to 30%; what was
    reached is held until the process ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1))


def return_freed_blocks() -> bool:
    """Hand large blocks back to the kernel when they are freed; returns whether the system's libc can.

    glibc does so until the first one is freed: from then on it puts blocks of that size between the others, where holes
    stay. What sharding gathers and lets go of block by block would take as much memory as it saves (docs/log.md,
    2026-11-26).
    """
    return platform.libc_ver()[0] == "glibc" and bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, LARGE))


def trim_memory() -> None:
    """Give back what malloc holds of freed memory between small objects, where the system's libc can."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
