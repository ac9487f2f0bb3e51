"""Weights of eight, six or four bits in the layout of the kernel, and products with them.

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
from wenfang.native.pages import LargePages

SOURCE = Path(__file__).with_name("quantized.cpp")
LANES, QUAD, GROUP = 16, 4, 32
"""As in the kernel: outputs of a panel, inputs multiplied at once, inputs that share a scale."""
SLICE = 16 * LANES
"""Outputs that are rounded at a time: the work in between takes many times their memory."""
MOST_INPUTS = 1 << 16
"""Wider ones were never tried."""
SHRINKAGES = (1.0, 0.9)
"""Shares of a group's range that four bits are tried on: clipping the outermost weights may serve the others."""
FITS = 2
"""Times that the numbers of a group in four bits are fitted to its codes."""
Bits = Literal[4, 6, 8]


@dataclass(frozen=True)
class PackedWeight:
    """A quantised weight_OI; `codes` and `scales` are in the kernel's order."""

    bits: Bits
    outputs: int
    inputs: int
    codes: Tensor
    """uint8; of four bits two in a byte, of six four in three."""
    scales: Tensor
    """bf16 by group and output; for four bits, scale and minimum."""


def pack(weight_OI: Tensor, bits: Bits, room: LargePages | None = None) -> PackedWeight:
    """Round each group to the nearest of 255 or 63 values symmetric about zero, or of 16 between its ends.

    Args:
        weight_OI: in any floating-point dtype.
        bits: of a number.
        room: where the result goes.

    Raises:
        ValueError: more than `MOST_INPUTS` inputs.
    """
    outputs, inputs = weight_OI.shape
    if inputs > MOST_INPUTS:
        raise ValueError(f"a product of {inputs} inputs could overflow; at most {MOST_INPUTS}")
    room = room or LargePages()
    panels, groups = -(-outputs // LANES), -(-inputs // GROUP)
    codes = room.empty(panels, groups * GROUP // QUAD * bits // 8, LANES, QUAD, dtype=torch.uint8)
    scales = room.empty(panels, groups, _scales(bits), LANES, dtype=torch.bfloat16)
    slices = zip(
        weight_OI.detach().split(SLICE), codes.split(SLICE // LANES), scales.split(SLICE // LANES), strict=True
    )
    for part_OI, its_codes, its_scales in slices:
        found = _pack(part_OI, bits)
        its_codes.copy_(found[0])
        its_scales.copy_(found[1])
    return PackedWeight(bits, outputs, inputs, codes, scales)


def _pack(weight_OI: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Codes and scales of some outputs."""
    outputs, inputs = weight_OI.shape
    # Filled up with copies of the last numbers, so that a group's range stays its own.
    weight = F.pad(weight_OI[None].float(), (0, -inputs % GROUP, 0, -outputs % LANES), mode="replicate")[0]
    groups = weight.unflatten(1, (-1, GROUP))
    if bits == 4:
        codes, scale, least = _four_bits(groups)
        scales = torch.stack((scale, least), 2)
    else:
        most = (1 << bits - 1) - 1
        scales = (groups.abs().amax(2, keepdim=True) / most).clamp_min(1e-30).bfloat16()[:, :, None]
        codes = (groups / scales[:, :, 0]).round().clamp(-most, most) + (most + 1)
    by_panel = scales[..., 0].unflatten(0, (-1, LANES)).permute(0, 2, 3, 1)
    quads = codes.flatten(1).to(torch.uint8).unflatten(0, (-1, LANES)).unflatten(2, (-1, QUAD)).transpose(1, 2)
    return _squeeze(quads, bits).contiguous(), by_panel.bfloat16().contiguous()


def packed_bytes(outputs: int, inputs: int, bits: Bits) -> tuple[int, int]:
    """Bytes of the codes and the scales of a weight_OI."""
    outputs, groups = -(-outputs // LANES) * LANES, -(-inputs // GROUP)
    return outputs * groups * GROUP * bits // 8, outputs * groups * _scales(bits) * 2


def unpack(weight: PackedWeight) -> Tensor:
    """The weight_OI in fp32 that the codes stand for."""
    codes, scales = weight.codes.transpose(1, 2).flatten(0, 1), weight.scales.permute(0, 3, 1, 2).flatten(0, 1)
    return _numbers(codes, scales, weight.bits)[: weight.outputs, : weight.inputs]


def rounding_loss(weight_OI: Tensor, bits: Bits) -> float:
    """What rounding takes from a weight, as a share of its size (by their norms), of some `SLICE` outputs."""
    some = weight_OI.detach()[:: max(1, len(weight_OI) // SLICE)][:SLICE].float()
    return float((unpack(pack(some, bits)) - some).norm() / some.norm().clamp_min(1e-30))


def look_up(weight: PackedWeight, rows: Tensor) -> Tensor:
    """Some rows of `unpack`, whose numbers fill one more dimension than the whole numbers `rows`.

    Raises:
        IndexError: there is no such row.
    """
    if rows.numel() and not 0 <= rows.min() <= rows.max() < weight.outputs:
        raise IndexError(f"rows {rows.min()} … {rows.max()} of a weight with {weight.outputs}")
    library = _library()
    if library is None:
        panels, lanes = rows.flatten() // LANES, rows.flatten() % LANES
        codes, scales = weight.codes[panels, :, lanes], weight.scales[panels, :, :, lanes]
        return _numbers(codes, scales, weight.bits)[:, : weight.inputs].unflatten(0, rows.shape)
    rows = rows.long().contiguous()
    found = torch.empty(*rows.shape, weight.inputs)
    pointers = ctypes.c_void_p(rows.data_ptr()), ctypes.c_void_p(found.data_ptr())
    library.quantized_rows(ctypes.byref(describe(weight)), *pointers, rows.numel())
    return found


def _numbers(codes: Tensor, scales: Tensor, bits: Bits) -> Tensor:
    """What codes [N, W / QUAD · bits / 8, QUAD] with scales [N, groups, 1 or 2] stand for, [N, W]."""
    scale, *least = scales.float()[..., None].unbind(2)
    groups = _spread(codes, bits).flatten(1).unflatten(1, (-1, GROUP)).float()
    return (groups * scale + least[0] if least else (groups - (1 << bits - 1)) * scale).flatten(1)


def _squeeze(quads: Tensor, bits: Bits) -> Tensor:
    """Codes [N, W / QUAD, …] in bytes, in as few bytes as they need."""
    if bits == 8:
        return quads
    if bits == 4:
        return quads[:, ::2] | quads[:, 1::2] << 4
    a, b, c, d = (quads[:, step::4] for step in range(4))
    return torch.stack((a | d << 6, b | d >> 2 << 6, c | d >> 4 << 6), 2).flatten(1, 2)


def _spread(codes: Tensor, bits: Bits) -> Tensor:
    """What `_squeeze` was given."""
    if bits == 8:
        return codes
    if bits == 4:
        return torch.stack((codes & 15, codes >> 4), 2).flatten(1, 2)
    a, b, c = codes.unflatten(1, (-1, 3)).unbind(2)
    d = a >> 6 | b >> 6 << 2 | c >> 6 << 4
    return torch.stack((a & 63, b & 63, c & 63, d), 2).flatten(1, 2)


def _scales(bits: Bits) -> int:
    """Numbers that a group of an output has beside its codes: a scale, and of four bits a minimum."""
    return 2 if bits == 4 else 1


class Weight(ctypes.Structure):
    """A packed weight as the kernels read it; whoever makes one keeps its tensors alive."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bits", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("panels", ctypes.c_int32),
    )


def describe(weight: PackedWeight, bias_O: Tensor | None = None) -> Weight:
    """The kernels' view of a weight.

    Args:
        weight: on the CPU, contiguous.
        bias_O: fp32, filled up to a multiple of `LANES`.
    """
    panels = -(-weight.outputs // LANES)
    bias = None if bias_O is None else bias_O.data_ptr()
    codes, scales = weight.codes.data_ptr(), weight.scales.data_ptr()
    return Weight(codes, scales, bias, weight.bits, weight.inputs, weight.outputs, panels)


def linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """x · Wᵀ over the last dimension of x, in its dtype. Each row's result is the same whatever the others are.

    The kernel computes from fp32 to fp32, and rounds each `GROUP` numbers of x to eight bits of the largest. Without a
    C++ compiler, W is expanded for each product.
    """
    library = _library()
    if library is None:
        return F.linear(x, unpack(weight).to(x.dtype))
    x_NI = x.float().contiguous()
    y_NO = x_NI.new_empty(*x.shape[:-1], weight.outputs)
    library.quantized_linear(
        ctypes.byref(describe(weight)),
        ctypes.c_void_p(x_NI.data_ptr()),
        ctypes.c_void_p(y_NO.data_ptr()),
        x_NI.numel() // weight.inputs,
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


def _four_bits(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and minima of groups along the last dimension, by the range with the least squared error.

    Codes that a range gives are fitted with a line, and those that this gives once more: with fitted scales and minima
    a group's errors sum to about zero. Otherwise they would add up over inputs that are not zero on average.
    """
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    found: tuple[Tensor, Tensor, Tensor] | None = None
    errors = torch.empty(0)
    for share in SHRINKAGES:
        margin = (high - low) * (1 - share) / 2
        scales, least = (high - low) * share / 15, low + margin
        for _ in range(FITS):
            codes = ((weight - least) / scales.clamp_min(1e-30)).round().clamp(0, 15)
            scales, least = _fit(codes, weight)
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


def _fit(codes: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima, in bf16's precision, with which the codes come closest to the weight, by least squares."""
    deviation = codes - codes.mean(-1, keepdim=True)
    spread = deviation.square().sum(-1, keepdim=True)
    scales = ((deviation * weight).sum(-1, keepdim=True) / spread.clamp_min(1e-30)).bfloat16().float()
    least = (weight.mean(-1, keepdim=True) - scales * codes.mean(-1, keepdim=True)).bfloat16().float()
    return scales, least
