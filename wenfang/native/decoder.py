"""A whole decoder's step in one call of compiled code (see decoder.cpp): the structures that it reads."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

from wenfang.native.library import load
from wenfang.native.quantized import Weight

SOURCE = Path(__file__).with_name("decoder.cpp")
BLOCK = 16
"""Tokens in a block of the cache."""
LANES = 16
"""What the width of a head must be a multiple of."""

_pointer, _int = ctypes.c_void_p, ctypes.c_int32


class Layer(ctypes.Structure):
    """One block; pointers are null where there is no such part."""

    _fields_ = (
        *((name, Weight) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((f"{name}_norm", _pointer) for name in ("mixer", "mixer_post", "mlp", "mlp_post", "q", "k")),
        *((name, _pointer) for name in ("sinks", "cos", "sin", "keys", "values")),
        ("rope_width", _int),
        ("window", _int),
    )


class Shape(ctypes.Structure):
    """What all layers share, and the layers."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        ("norm", _pointer),
        *((name, _int) for name in ("count", "dim", "heads", "kv_heads", "head_dim", "hidden")),
        ("norm_projections", _int),
        ("gelu", _int),
        *((name, ctypes.c_float) for name in ("eps", "scale", "softcap")),
    )


class Call(ctypes.Structure):
    """The rows of one step: fp32 embeddings (states in their place afterwards), positions, and blocks of the cache."""

    _fields_ = (
        *((name, _pointer) for name in ("x", "positions", "tables", "starts")),
        ("rows", _int),
        ("threads", _int),
    )


@functools.cache
def step() -> Callable[[object, object], None] | None:
    """The compiled step; None without a usable compiler."""
    library = load(SOURCE)
    if library is None:
        return None
    library.decoder_step.restype = None
    return library.decoder_step
