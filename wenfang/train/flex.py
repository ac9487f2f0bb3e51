"""Attention over packed rows on a GPU: FlexAttention, which computes no block of scores that nobody sees (Dong et al.
2024). The processor has a kernel of our own (`wenfang.native`)."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from wenfang.train.placement import has_compiler

# Compilation takes the answer as it is instead of tracing how it is found.
_ready: Callable[[], bool] = torch.compiler.assume_constant_result(lambda: has_compiler(torch.device("cuda")))
NARROWEST = 16
"""Channels of a head that its kernels ask for."""


def can_attend(q_BHTK: Tensor, v_BGTV: Tensor) -> bool:
    """Whether `attention` serves these tensors: on a CUDA device that Triton compiles for."""
    wide = min(q_BHTK.shape[-1], v_BGTV.shape[-1]) >= NARROWEST
    return wide and q_BHTK.device.type == "cuda" and _ready()


def block_mask(documents_BT: Tensor, window: int | None) -> BlockMask:
    """Which blocks of scores are computed: a position sees those of its document up to itself, the last `window` where
    there is one. One mask serves every layer of that window."""

    def seen(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        inside = (documents_BT[b, q] == documents_BT[b, k]) & (k <= q)
        return inside if window is None else inside & (q - k < window)

    B, T = documents_BT.shape
    return _fused(create_block_mask)(seen, B, None, T, T, device=documents_BT.device)


def attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v over what the mask lets be seen; H is a multiple of G."""
    return _fused(flex_attention)(q_BHTK, k_BGTK, v_BGTV, block_mask=mask, scale=scale, enable_gqa=True)


def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled with the step that calls it, or else by itself: uncompiled it would hold all scores."""
    return function if torch.compiler.is_compiling() else _compiled(function)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)
