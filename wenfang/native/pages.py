"""Memory in large pages, for weights that are read from one end to the other in every step."""

import math
import mmap
from collections.abc import Sequence

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
        size = math.prod(shape) * dtype.itemsize
        if not 0 < _rounded(size) <= len(self._free):
            return torch.empty(shape, dtype=dtype)
        place, self._free = self._free[:size], self._free[_rounded(size) :]
        return place.view(dtype).view(shape)


def _rounded(size: int) -> int:
    return -(-size // LINE) * LINE
