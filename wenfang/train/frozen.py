"""Projections whose weights rest in four or eight bits and are never trained: the base under an adapter.

Sources: NF4 and QLoRA, Dettmers et al. 2023; a scale per row as in LLM.int8(), Dettmers et al. 2022.
"""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Format = Literal["nf4", "int8"]
BLOCK = 64
"""NF4 weights that share a scale."""


def _nf4_levels() -> Tensor:
    # The paper's outermost quantile: midway between those of 15 and of 16 equal shares of the distribution.
    outer = 1 - (1 / 30 + 1 / 32) / 2
    quantile = NormalDist().inv_cdf
    positive = [quantile(0.5 + (outer - 0.5) * i / 8) for i in range(1, 9)]
    negative = [-quantile(0.5 + (outer - 0.5) * i / 7) for i in range(1, 8)]
    return torch.tensor(sorted([*positive, *negative, 0.0]), dtype=torch.float64).div(quantile(outer)).float()


NF4_LEVELS = _nf4_levels()
"""The 16 quantiles of a normal distribution in [−1, 1], one of them zero."""


def quantise(weight_OI: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """Codes (uint8 with two NF4 codes per byte, or int8) and fp32 scales (per block, or per row)."""
    if form == "int8":
        scales_O1 = weight_OI.float().abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        return (weight_OI.float() / scales_O1).round().to(torch.int8), scales_O1
    flat = weight_OI.float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales_N1 = blocks.abs().amax(1, keepdim=True).clamp_min(1e-30)
    table = NF4_LEVELS.to(weight_OI.device)
    codes = torch.bucketize(blocks / scales_N1, (table[1:] + table[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], scales_N1


def dequantise(
    codes: Tensor, scales: Tensor, levels: Tensor | None, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The weight_OI nearest to what was quantised; `levels` are NF4's, None stands for int8."""
    if levels is None:
        return (codes * scales).to(dtype)
    pairs = torch.stack((codes >> 4, codes & 15), dim=-1)
    blocks = levels[pairs.view(-1, BLOCK).long()] * scales
    return blocks.flatten()[: shape[0] * shape[1]].view(shape).to(dtype)


class FrozenLinear(nn.Module):
    """x · Wᵀ + b with a quantised W, which is expanded for each product and kept by none.

    Args:
        weight_OI: what to quantise.
        bias: b, kept as it is, or None.
        form: the number format.
    """

    codes: Tensor
    scales: Tensor
    levels: Tensor | None
    """Where the codes are: fetched from the processor for each product, they would make a GPU wait for it."""
    bias: Tensor | None

    def __init__(self, weight_OI: Tensor, bias: Tensor | None, form: Format) -> None:
        super().__init__()
        self.form: Format = form
        self.out_features, self.in_features = weight_OI.shape
        codes, scales = quantise(weight_OI, form)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("levels", NF4_LEVELS.to(codes.device) if form == "nf4" else None, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        product: Callable[..., Tensor] = _Product.apply
        y = product(x, self.codes, self.scales, self.levels, shape)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    @property
    def weight(self) -> Tensor:
        """The dense weight_OI in fp32, made anew."""
        shape = (self.out_features, self.in_features)
        return dequantise(self.codes, self.scales, self.levels, shape, torch.float32)


class _Product(torch.autograd.Function):
    """A plain product would keep the dense weight for its gradient; this one expands it a second time."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, levels: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(codes, scales, levels)
        ctx.shape = shape
        return F.linear(x, dequantise(codes, scales, levels, shape, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = gradients
        codes, scales, levels = ctx.saved_tensors
        return gradient @ dequantise(codes, scales, levels, ctx.shape, gradient.dtype), None, None, None, None
