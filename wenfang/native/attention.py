"""Attention over packed rows as a torch operator with gradients, for whole sequences on the CPU: in fp32, and in bf16
where the processor multiplies it."""

import ctypes
import functools
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from wenfang.native.library import constant_while_compiling, load

SOURCE = Path(__file__).with_name("attention.cpp")
WIDTH_STEP = 16
"""Head widths must be multiples of what a register holds."""
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""What the library calls the formats that it computes in, bf16 with AVX512-BF16 only."""


class _Shape(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, ctypes.c_int32) for name in ("batch", "length", "heads", "kv_heads", "width")),
        ("scale", ctypes.c_float),
    ]


class _Strides(ctypes.Structure):
    _fields_: ClassVar = [(name, ctypes.c_int64) for name in ("batch", "head", "row")]


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load(SOURCE)


@functools.cache
def _compiled() -> tuple[torch.dtype, ...]:
    return tuple(dtype for dtype, name in NAMES.items() if hasattr(_library(), f"attention_forward_{name}"))


@constant_while_compiling
def _formats() -> tuple[torch.dtype, ...]:
    return _compiled()


def can_attend(q_BHTK: Tensor, v_BGTV: Tensor) -> bool:
    """Whether `attention` serves these tensors here: fp32, or bf16 with AVX512-BF16, on a CPU with a C++ compiler."""
    fits = q_BHTK.shape[-1] % WIDTH_STEP == 0 and q_BHTK.shape[-1] == v_BGTV.shape[-1]
    return fits and q_BHTK.device.type == "cpu" and q_BHTK.dtype in _formats()


def attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, starts_BT: Tensor, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v, where position t of a row sees the positions starts_BT[t] … t.

    The work is proportional to what is seen: keys before a document's start are not computed.

    Args:
        q_BHTK, k_BGTK, v_BGTK: as `can_attend` asks; H is a multiple of G.
        starts_BT: int32, never falling along a row, at most t.
        scale: of the scores, usually 1 / √K.

    Returns:
        context_BHTK in the inputs' dtype, in memory [B, T, H, K]. Differentiable in q, k and v.

    Source: the blocked recomputation of FlashAttention (Dao et al. 2022).
    """
    context_BHTK, _ = _forward(q_BHTK, k_BGTK, v_BGTK, starts_BT, scale)
    return context_BHTK


@torch.library.custom_op("wenfang::attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = _dense(q), _dense(k), _dense(v)
    out, log_sums = _outputs(q, k, v, starts, scale)
    _call("attention_forward", q, k, starts, scale, *_arrays(q, k, v, out), _pointer(log_sums))
    return out, log_sums


@_forward.register_fake
def _outputs(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _heads_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("wenfang::attention_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float, out: Tensor, log_sums: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, grad = _dense(q), _dense(k), _dense(v), _dense(grad)
    dq, dk, dv = _gradients(q, k, v, starts, scale, out, log_sums, grad)
    inputs = (*_arrays(q, k, v, out), _pointer(log_sums))
    _call("attention_backward", q, k, starts, scale, *inputs, *_arrays(grad, dq, dk, dv))
    return dq, dk, dv


@_backward.register_fake
def _gradients(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float, out: Tensor, log_sums: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _heads_like(q), _heads_like(k), _heads_like(v)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, starts, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, starts, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, starts, out, log_sums = ctx.saved_tensors
    return (*_backward(q, k, v, starts, ctx.scale, out, log_sums, grad), None, None)


_forward.register_autograd(_differentiate, setup_context=_remember)


def _heads_like(x_BHTK: Tensor) -> Tensor:
    """Room for a tensor of this shape, in memory [B, T, H, K]: joining the heads afterwards copies nothing."""
    B, H, T, K = x_BHTK.shape
    return x_BHTK.new_empty(B, T, H, K).transpose(1, 2)


def _dense(x: Tensor) -> Tensor:
    """With neighbouring numbers along the last dimension; the expanded gradient of a sum, say, has none."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(name: str, q: Tensor, k: Tensor, starts: Tensor, scale: float, *arguments: Any) -> None:
    B, H, T, K = q.shape
    starts = starts.contiguous()
    shape = ctypes.byref(_Shape(B, T, H, k.shape[1], K, scale))
    getattr(_library(), f"{name}_{NAMES[q.dtype]}")(shape, _pointer(starts), *arguments)


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _arrays(*tensors: Tensor) -> list[Any]:
    """Pointer and strides of each tensor."""
    arrays: list[Any] = []
    for x in tensors:
        arrays += [_pointer(x), ctypes.byref(_Strides(*x.stride()[:3]))]
    return arrays
