"""Memory in large pages, for what is read from one end to the other in every step: weights, keys and values."""

import math
import mmap
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LINE = 64
"""Bytes of a cache line, at which each tensor begins."""


class LargePages:
    """Room for tensors side by side in memory, for which the system is asked for large pages (docs/log.md, 2026-11-26).
    Where it has none, tensors lie anywhere.

    Args:
        sizes: of the tensors that will be put there, in bytes.
    """

    def __init__(self, sizes: Sequence[int] = ()) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)
        if not hasattr(mmap, "MADV_HUGEPAGE") or not sum(sizes):
            return
        # By default Python shares such memory between processes, which Linux does not put on large pages.
        memory = mmap.mmap(-1, sum(map(_rounded, sizes)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # A kernel built without them.
            return
        self._free = torch.frombuffer(memory, dtype=torch.uint8)

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """As `torch.empty`, in the next free place; elsewhere when there is no more room."""
        place = self._take(math.prod(shape) * dtype.itemsize)
        return torch.empty(shape, dtype=dtype) if place is None else place.view(dtype).view(shape)

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """As `empty`, with zeros. They take memory only once they are written, some 2 MB at a time where pages are
        large; torch's own do not wait for that."""
        size = math.prod(shape) * dtype.itemsize
        place = self._take(size)  # The system gives pages filled with zeros.
        if place is None:
            place = torch.from_numpy(np.zeros(size, np.uint8)) if size else torch.empty(0, dtype=torch.uint8)
        return place.view(dtype).view(shape)

    def _take(self, size: int) -> Tensor | None:
        """The next free bytes, if there are as many."""
        if not 0 < _rounded(size) <= len(self._free):
            return None
        place, self._free = self._free[:size], self._free[_rounded(size) :]
        return place


def _rounded(size: int) -> int:
    return -(-size // LINE) * LINE
