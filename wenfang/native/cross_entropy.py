"""Cross-entropy and its gradient as one torch operator, for logits on the CPU in fp32 or bf16."""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from wenfang.native.library import constant_while_compiling, load

SOURCE = Path(__file__).with_name("cross_entropy.cpp")
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""What the library calls the formats that it reads."""


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load(SOURCE)


@constant_while_compiling
def _is_there() -> bool:
    return _library() is not None


def takes_logits(logits_NV: Tensor) -> bool:
    """Whether `cross_entropy_` serves such logits here: fp32 or bf16, contiguous, on a CPU with a C++ compiler."""
    fits = logits_NV.dtype in NAMES and logits_NV.is_contiguous()
    return logits_NV.device.type == "cpu" and fits and _is_there()


@torch.library.custom_op("wenfang::cross_entropy_", mutates_args=("logits_NV",))
def cross_entropy_(logits_NV: Tensor, targets_N: Tensor, share: float, z: float) -> Tensor:
    """What each row loses, (1 − share) (Z − l_t) + share (Z − mean l) + z Z² with Z = log Σ eˡ. The gradient of the sum
    takes the place of the logits.

    Args:
        logits_NV: contiguous, as `takes_logits` asks.
        targets_N: int64; a row whose target is negative loses nothing.
        share: of each target that is spread over the vocabulary (Szegedy et al. 2016).
        z: weight of the squared normaliser (PaLM, Chowdhery et al. 2022).

    Returns:
        nats_N in fp32. A row with a logit that is no finite number is NaN.
    """
    targets_N, nats_N = targets_N.contiguous(), _nats(logits_NV, targets_N, share, z)
    run = getattr(_library(), f"cross_entropy_{NAMES[logits_NV.dtype]}")
    shape = (ctypes.c_int64(size) for size in logits_NV.shape)
    logits, targets, nats = (ctypes.c_void_p(x.data_ptr()) for x in (logits_NV, targets_N, nats_N))
    run(logits, targets, *shape, ctypes.c_float(share), ctypes.c_float(z), nats)
    return nats_N


@cross_entropy_.register_fake
def _nats(logits_NV: Tensor, targets_N: Tensor, share: float, z: float) -> Tensor:
    return logits_NV.new_empty(len(logits_NV), dtype=torch.float32)
