"""Weights of eight or four bits in the layout of the kernel, and products with them.

Shapes in names: O outputs, I inputs, W inputs filled up to a multiple of `GROUP`, P panels of `LANES` outputs, N rows.
"""

import ctypes
import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wenfang.core.language import say
from wenfang.native.library import load

SOURCE = Path(__file__).with_name("quantized.cpp")
LANES, QUAD, GROUP = 16, 4, 32
"""As in the kernel: outputs of a panel, inputs multiplied at once, four-bit weights that share scale and minimum."""
MOST_INPUTS = 1 << 16
"""Sums of more products could leave 32 bits."""
SHRINKAGES = (1.0, 0.95, 0.9, 0.85)
"""Shares of a group's range that four bits are tried on: clipping the outermost weights may serve the others."""
Bits = Literal[4, 8]


@dataclass(frozen=True)
class PackedWeight:
    """A quantised weight_OI; `codes` and `scales` are in the kernel's order."""

    bits: Bits
    outputs: int
    inputs: int
    codes: Tensor
    """uint8; of four bits two in a byte."""
    scales: Tensor
    """fp32 by output for eight bits; bf16 scale and minimum by group and output for four."""


def pack(weight_OI: Tensor, bits: Bits) -> PackedWeight:
    """Round to the nearest of 255 values symmetric about zero per output, or of 16 between the ends of each group.

    Raises:
        ValueError: more than `MOST_INPUTS` inputs.
    """
    outputs, inputs = weight_OI.shape
    if inputs > MOST_INPUTS:
        raise ValueError(f"a product of {inputs} inputs could overflow; at most {MOST_INPUTS}")
    # Filled up with copies of the last numbers, so that a group's range stays its own.
    weight = F.pad(weight_OI.detach()[None].float(), (0, -inputs % GROUP, 0, -outputs % LANES), mode="replicate")[0]
    if bits == 8:
        scales_O1 = weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        codes = (weight / scales_O1).round() + 128
        return PackedWeight(8, outputs, inputs, _panels(codes).contiguous(), scales_O1[:, 0].contiguous())
    codes, scales, least = _four_bits(weight.unflatten(1, (-1, GROUP)))
    quads = _panels(codes.flatten(1))
    ends = torch.stack((scales, least), -1)[:, :, 0]  # [O, groups, 2]
    ends = ends.unflatten(0, (-1, LANES)).permute(0, 2, 3, 1)
    codes = quads[:, ::2] | quads[:, 1::2] << 4
    return PackedWeight(4, outputs, inputs, codes.contiguous(), ends.bfloat16().contiguous())


def unpack(weight: PackedWeight) -> Tensor:
    """The weight_OI in fp32 that the codes stand for."""
    codes = weight.codes
    if weight.bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), 2).flatten(1, 2)
    codes_OW = codes.permute(0, 2, 1, 3).flatten(2).flatten(0, 1).float()
    if weight.bits == 8:
        whole = (codes_OW - 128) * weight.scales[:, None]
    else:
        scales, least = weight.scales.float().permute(2, 0, 3, 1).flatten(1, 2)[..., None]
        whole = (codes_OW.unflatten(1, (-1, GROUP)) * scales + least).flatten(1)
    return whole[: weight.outputs, : weight.inputs]


def linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """x · Wᵀ over the last dimension of x, in its dtype. Each row's result is the same whatever the others are.

    The kernel reads and writes bf16, and rounds each row of x to 15 bits of its largest number. Without a C++ compiler,
    W is expanded for each product.
    """
    library = _library()
    if library is None:
        return F.linear(x, unpack(weight).to(x.dtype))
    x_NI = x.to(torch.bfloat16).contiguous()
    y_NO = x_NI.new_empty(*x.shape[:-1], weight.outputs)
    library.quantized_linear(
        weight.bits,
        ctypes.c_void_p(weight.codes.data_ptr()),
        ctypes.c_void_p(weight.scales.data_ptr()),
        ctypes.c_void_p(x_NI.data_ptr()),
        ctypes.c_void_p(y_NO.data_ptr()),
        x_NI.numel() // weight.inputs,
        weight.inputs,
        weight.outputs,
        torch.get_num_threads(),
    )
    return y_NO.to(x.dtype)


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load(SOURCE)
    if library is None:
        warnings.warn(
            say(
                zh="沒有可用的 C++ 編譯器：量化的權重每次都要還原，省記憶體但很慢。請安裝 g++。",
                en="No usable C++ compiler: quantised weights are expanded for each product, which saves memory but "
                "is slow. Install g++.",
            ),
            RuntimeWarning,
            stacklevel=3,
        )
    return library


def _panels(codes_OW: Tensor) -> Tensor:
    """Bytes [P, W / QUAD, LANES, QUAD]."""
    return codes_OW.to(torch.uint8).unflatten(0, (-1, LANES)).unflatten(2, (-1, QUAD)).transpose(1, 2)


def _four_bits(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and minima of groups along the last dimension, by the range with the least squared error."""
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    found: tuple[Tensor, Tensor, Tensor] | None = None
    errors = torch.empty(0)
    for share in SHRINKAGES:
        margin = (high - low) * (1 - share) / 2
        scales = ((high - low) * share / 15).clamp_min(1e-30).bfloat16().float()
        least = (low + margin).bfloat16().float()
        codes = ((weight - least) / scales).round().clamp(0, 15)
        error = (codes * scales + least - weight).square().sum(-1, keepdim=True)
        new = (codes, scales, least)
        if found is None:
            found, errors = new, error
            continue
        better = error < errors
        errors = torch.minimum(error, errors)
        codes, scales, least = (torch.where(better, mine, old) for mine, old in zip(new, found, strict=True))
        found = (codes, scales, least)
    assert found is not None  # There is a first share.
    return found
