"""What a training step computes beside products and attention, as torch operators for the CPU: silu(gate) · up, and
cross-entropy with its gradient."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wenfang.native.library import constant_while_compiling, load

SOURCE = Path(__file__).with_name("training.cpp")
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""What the library calls the formats that it computes in."""


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load(SOURCE)


@constant_while_compiling
def _is_there() -> bool:
    return _library() is not None


def can_compute(x: Tensor) -> bool:
    """Whether the operators of this module serve such tensors here: fp32 or bf16, on a CPU with a C++ compiler."""
    return x.device.type == "cpu" and x.dtype in NAMES and _is_there()


@torch.library.custom_op("wenfang::silu_gate", mutates_args=())
def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, rounded once, of two tensors of one shape and format as `can_compute` asks. Differentiable."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _call("silu_gate", gate, up, gate.numel(), out)
    return out


@torch.library.custom_op("wenfang::silu_gate_backward", mutates_args=())
def _silu_gate_backward(gate: Tensor, up: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    gate, up, slope = gate.contiguous(), up.contiguous(), slope.contiguous()
    gate_slope, up_slope = torch.empty_like(gate), torch.empty_like(up)
    _call("silu_gate_backward", gate, up, slope, gate.numel(), gate_slope, up_slope)
    return gate_slope, up_slope


@silu_gate.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@_silu_gate_backward.register_fake
def _(gate: Tensor, up: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    like = functools.partial(torch.empty_like, memory_format=torch.contiguous_format)
    return like(gate), like(up)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
    gate_slope, up_slope = _silu_gate_backward(*ctx.saved_tensors, slope)
    return gate_slope, up_slope


silu_gate.register_autograd(_differentiate, setup_context=_remember)


@torch.library.custom_op("wenfang::cross_entropy_", mutates_args=("logits_NV",))
def cross_entropy_(logits_NV: Tensor, targets_N: Tensor, share: float, z: float) -> Tensor:
    """What each row loses, (1 − share) (Z − l_t) + share (Z − mean l) + z Z² with Z = log Σ eˡ. The gradient of the sum
    takes the place of the logits.

    Args:
        logits_NV: contiguous, and as `can_compute` asks.
        targets_N: int64; a row whose target is negative loses nothing.
        share: of each target that is spread over the vocabulary (Szegedy et al. 2016).
        z: weight of the squared normaliser (PaLM, Chowdhery et al. 2022).

    Returns:
        nats_N in fp32. A row with a logit that is no finite number is NaN.
    """
    targets_N, nats_N = targets_N.contiguous(), _nats(logits_NV, targets_N, share, z)
    smoothing = (ctypes.c_float(share), ctypes.c_float(z))
    _call("cross_entropy", logits_NV, targets_N, *logits_NV.shape, *smoothing, nats_N)
    return nats_N


@cross_entropy_.register_fake
def _nats(logits_NV: Tensor, targets_N: Tensor, share: float, z: float) -> Tensor:
    return logits_NV.new_empty(len(logits_NV), dtype=torch.float32)


def _call(name: str, first: Tensor, *others: Any) -> None:
    """Run a kernel for the format of its first tensor."""
    wide = (ctypes.c_int64(x) if isinstance(x, int) else x for x in (first, *others))
    run = getattr(_library(), f"{name}_{NAMES[first.dtype]}")
    run(*(ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in wide))
