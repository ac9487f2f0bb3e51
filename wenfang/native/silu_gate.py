"""silu(gate) · up as a torch operator with gradients, for activations on the CPU in fp32 or bf16."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wenfang.native.library import constant_while_compiling, load

SOURCE = Path(__file__).with_name("silu_gate.cpp")
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""What the library calls the formats that it computes in."""


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load(SOURCE)


@constant_while_compiling
def _is_there() -> bool:
    return _library() is not None


def takes_gate(gate: Tensor) -> bool:
    """Whether `silu_gate` serves such activations here: fp32 or bf16, on a CPU with a C++ compiler."""
    return gate.device.type == "cpu" and gate.dtype in NAMES and _is_there()


@torch.library.custom_op("wenfang::silu_gate", mutates_args=())
def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, rounded once, of two tensors of one shape and format as `takes_gate` asks. Differentiable."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _call("silu_gate", gate, up, gate.numel(), out)
    return out


@torch.library.custom_op("wenfang::silu_gate_backward", mutates_args=())
def _backward(gate: Tensor, up: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    gate, up, slope = gate.contiguous(), up.contiguous(), slope.contiguous()
    gate_slope, up_slope = torch.empty_like(gate), torch.empty_like(up)
    _call("silu_gate_backward", gate, up, slope, gate.numel(), gate_slope, up_slope)
    return gate_slope, up_slope


@silu_gate.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(gate: Tensor, up: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    like = functools.partial(torch.empty_like, memory_format=torch.contiguous_format)
    return like(gate), like(up)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
    gate_slope, up_slope = _backward(*ctx.saved_tensors, slope)
    return gate_slope, up_slope


silu_gate.register_autograd(_differentiate, setup_context=_remember)


def _call(name: str, *arguments: Tensor | int) -> None:
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    run = getattr(_library(), f"{name}_{NAMES[tensors[0].dtype]}")
    run(*(ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else ctypes.c_int64(x) for x in arguments))
