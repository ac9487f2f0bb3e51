"""Random numbers that follow from what they are for — seed, position, purpose, token — and from nothing else."""

from collections.abc import Sequence

import torch
from torch import Tensor

Key = tuple[int, int, int]
"""(seed, position in the completion, purpose)."""

TOKEN, XTC = 0, 1
"""Purposes."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_64 = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MIX_32 = ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)))
_LARGEST = 1 - 2.0**-24


def uniform(key: Key) -> float:
    """One number in [0, 1)."""
    return (key_to_int(key) >> 11) * 2.0**-53


def exponential(keys: Sequence[Key], V: int) -> Tensor:
    """Independent Exp(1) variables E_NV in fp32, one row for each key.

    Token i of a row is hashed with both halves of the row's 64-bit key by two rounds of a 32-bit mixer, in place. The
    compiled sampler (wenfang/native/sampler.cpp) computes the same.
    """
    halves = [key_to_int(key) for key in keys]
    low_N1 = torch.tensor([[_signed(half & 0xFFFFFFFF)] for half in halves], dtype=torch.int32)
    high_N1 = torch.tensor([[_signed(half >> 32)] for half in halves], dtype=torch.int32)
    bits_NV = torch.arange(V, dtype=torch.int32) + low_N1
    _mix_in_place(bits_NV)
    bits_NV ^= high_N1
    _mix_in_place(bits_NV)
    # 31 bits and a half: the smallest values, which decide a race, keep their full precision in fp32.
    u_NV = bits_NV.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=_LARGEST)
    return u_NV.neg_().log1p_().neg_()


def _mix_in_place(bits: Tensor) -> None:
    """Multiply and xor-shift. torch has no unsigned shift: the copied sign bits keep the step invertible."""
    for shift, factor in _MIX_32:
        bits ^= bits >> shift
        bits *= factor
    bits ^= bits >> 16


def key_to_int(key: Key) -> int:
    """64 bits in which every bit of the key counts."""
    seed, position, purpose = key
    return _mix(_mix(_mix(seed) ^ position) ^ purpose)


def _mix(value: int) -> int:
    """SplitMix64 (Steele et al. 2014)."""
    value = (value + _GOLDEN) & _MASK
    for shift, factor in _MIX_64:
        value = ((value ^ (value >> shift)) * factor) & _MASK
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    """32 bits as torch's int32 holds them."""
    return value - (1 << 32) if value >> 31 else value
