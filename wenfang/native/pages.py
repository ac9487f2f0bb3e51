"""Memory in large pages, for weights that are read from one end to the other in every step."""

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

LINE = 64
"""Bytes of a cache line, at which each tensor begins."""


def on_large_pages(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of CPU tensors side by side in memory for which the system is asked for large pages: then two threads read
    about a half more in the same time (docs/log.md, 2026-11-24). The tensors themselves where it has no such pages.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE") or not tensors:
        return list(tensors)
    places = [-(-tensor.nbytes // LINE) * LINE for tensor in tensors]
    memory = mmap.mmap(-1, sum(places))
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # A kernel built without them.
        return list(tensors)
    room, copies = torch.frombuffer(memory, dtype=torch.uint8), []
    for tensor, part in zip(tensors, room.split(places), strict=True):
        copy = part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        copies.append(copy.copy_(tensor))
    return copies
