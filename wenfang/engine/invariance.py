"""How many rows a matrix product must have so that each row's result does not depend on the others.

A BLAS chooses its kernel by the number of rows; kernels add up in different orders, so one and the same prompt would
get other logits, and now and then another token, depending on its company in the batch. Above some small number
of rows the kernels of one dtype agree to the last bit. The number differs between libraries and machines, so it is
found by trying.
"""

import logging
from collections.abc import Iterable

import torch
import torch.nn.functional as F

_CANDIDATES = (1, 2, 4, 8, 16, 32)
"""Each divides the next, so what is enough for one shape is enough in any larger candidate."""
_MULTIPLES = (*range(1, 17), 24, 32, 48)
"""Kernels change at small counts. Trying every count would keep 0.7 MB of compiled kernel for each, of each shape."""
_MOST_ROWS = 96


def independent_rows(dtype: torch.dtype, shapes: Iterable[tuple[int, int]]) -> int:
    """The smallest n such that products with any multiple of n rows agree in every row.

    Args:
        dtype: of weights and activations.
        shapes: (inputs, outputs) of the weights to try.
    """
    found = [_rows(*_cancelling(inputs, outputs, dtype)) for inputs, outputs in shapes]
    if None in found:
        logging.getLogger(__name__).warning(
            "%s products on this machine depend on the batch: equal seeds may now and then give different texts", dtype
        )
        return 1
    return max(filter(None, found), default=1)


def _rows(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> int | None:
    for n in _CANDIDATES:
        counts = (n * k for k in _MULTIPLES if n * k < _MOST_ROWS)
        if all(torch.equal(F.linear(x[:m], weight), y[:m]) for m in counts):
            return n
    return None


def _cancelling(inputs: int, outputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, weights and their product, all of whose terms cancel. What is left is the rounding alone, which shows any
    other order of adding even where the dtype of the result would hide it."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(inputs, generator=generator)
    half_x, half_w = (torch.randn(n, inputs // 2, generator=generator) for n in (_MOST_ROWS, outputs))
    rest = inputs - 2 * half_x.shape[1]
    x = torch.cat((half_x, -half_x, torch.zeros(_MOST_ROWS, rest)), dim=1)[:, order].to(dtype)
    weight = torch.cat((half_w, half_w, torch.zeros(outputs, rest)), dim=1)[:, order].to(dtype)
    return x, weight, F.linear(x, weight)
