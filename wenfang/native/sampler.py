"""The next token of each row in one call of compiled code (see sampler.cpp)."""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from wenfang.native.library import load

SOURCE = Path(__file__).with_name("sampler.cpp")


class Row(ctypes.Structure):
    """Logits in fp32 and how to choose from them; whoever makes one keeps alive what it points to."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("allowed", ctypes.c_void_p),
        ("key", ctypes.c_uint64),
        ("temperature", ctypes.c_float),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("top_k", ctypes.c_int32),
    )


def can_sample() -> bool:
    """Whether there is a usable compiler."""
    return _library() is not None


def sample(rows: Sequence[Row], V: int) -> list[int]:
    """The token of each row, out of V: the likeliest at temperature 0, else the winner of a race (see
    `engine.sampling.choose`)."""
    library = _library()
    assert library is not None  # `can_sample` saw it.
    chosen = (ctypes.c_int32 * len(rows))()
    library.sample((Row * len(rows))(*rows), chosen, len(rows), V, torch.get_num_threads())
    return list(chosen)


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load(SOURCE)
