"""One projection per group of rows: the matrix products of a mixture of experts, without padding or graph breaks.

Shapes in names: N rows sorted by group, E groups, I inputs, O outputs.
"""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("wenfang::grouped_matmul", mutates_args=())
def grouped_matmul(x_NI: Tensor, w_EIO: Tensor, counts_E: Tensor) -> Tensor:
    """Rows times the matrix of their group, y_NO.

    Args:
        counts_E: rows of each group, int64, adding up to N.
    """
    y_NO = x_NI.new_empty(len(x_NI), w_EIO.shape[2])
    start = 0
    for group, count in enumerate(counts_E.tolist()):
        if count:
            torch.mm(x_NI[start : start + count], w_EIO[group], out=y_NO[start : start + count])
        start += count
    return y_NO


@torch.library.custom_op("wenfang::grouped_outer", mutates_args=())
def grouped_outer(x_NI: Tensor, g_NO: Tensor, counts_E: Tensor) -> Tensor:
    """xᵀ · g within each group, [E, I, O]: the gradient of `grouped_matmul` with respect to its matrices."""
    w_EIO = x_NI.new_zeros(len(counts_E), x_NI.shape[1], g_NO.shape[1])
    start = 0
    for group, count in enumerate(counts_E.tolist()):
        if count:
            torch.mm(x_NI[start : start + count].T, g_NO[start : start + count], out=w_EIO[group])
        start += count
    return w_EIO


@grouped_matmul.register_fake
def _(x_NI: Tensor, w_EIO: Tensor, counts_E: Tensor) -> Tensor:
    return x_NI.new_empty(x_NI.shape[0], w_EIO.shape[2])


@grouped_outer.register_fake
def _(x_NI: Tensor, g_NO: Tensor, counts_E: Tensor) -> Tensor:
    return x_NI.new_empty(counts_E.shape[0], x_NI.shape[1], g_NO.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, g_NO: Tensor) -> tuple[Tensor, Tensor, None]:
    x_NI, w_EIO, counts_E = ctx.saved_tensors
    g_NO = g_NO.contiguous()
    return grouped_matmul(g_NO, w_EIO.mT, counts_E), grouped_outer(x_NI, g_NO, counts_E), None


grouped_matmul.register_autograd(_gradients, setup_context=_save)
